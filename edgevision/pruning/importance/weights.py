"""What measures read of a group: its filters, as they are when batch norms are folded."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from edgevision.models.channels import CONVOLUTIONS, TRANSPOSED
from edgevision.pruning.groups import ChannelGroup, Member


def norm_after(model: nn.Module) -> dict[str, nn.Module]:
    """Convolution → the batch norm that follows it in its parent module.

    A convolution's weights say nothing of the size of its outputs where a norm stands behind it; the folded ones do.
    """
    found: dict[str, nn.Module] = {}
    for prefix, parent in model.named_modules():
        for (name, layer), (_, following) in pairwise(parent.named_children()):
            normed = isinstance(following, nn.modules.batchnorm._BatchNorm) and following.affine
            if isinstance(layer, CONVOLUTIONS) and normed and following.num_features == layer.out_channels:
                found[f"{prefix}.{name}".lstrip(".")] = following
    return found


def rows(module: nn.Module, member: Member, norm: nn.Module | None = None) -> Tensor:
    """Weights of a member channel by channel, in float64: [channels of the group, values of each].

    Args:
        module: the member's convolution or linear layer.
        member: its axis is ``out``, ``in`` or (depthwise) ``both``.
        norm: batch norm behind it, to be folded in.
    """
    assert isinstance(module.weight, Tensor)
    weight = module.weight.detach().double().cpu()
    if isinstance(module, TRANSPOSED):
        weight = weight.transpose(0, 1)
    if norm is not None:
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
        assert norm.running_var is not None
        scale = norm.weight.detach().double().cpu() / torch.sqrt(norm.running_var.double().cpu() + norm.eps)
        weight = weight * scale.view(-1, *[1] * (weight.dim() - 1))
    if member.axis == "in":
        weight = weight.transpose(0, 1)
        positions = member.positions % weight.shape[0]  # grouped: one group's columns stand for those of all
    else:
        positions = member.positions
    return weight.flatten(1)[torch.from_numpy(positions)].flatten(1)


def filters(model: nn.Module, group: ChannelGroup) -> Iterator[tuple[Member, nn.Module]]:
    """Members of a group that are convolutions or linear layers, with their modules."""
    modules = dict(model.named_modules())
    for member in group.members:
        module = modules.get(member.name)
        if not isinstance(module, (*CONVOLUTIONS, nn.Linear)):
            continue
        # a depthwise layer with several outputs per channel is seen by its outputs
        reads_grouped = member.axis == "in" and isinstance(module, CONVOLUTIONS) and module.groups > 1
        if not (reads_grouped and module.groups == module.in_channels):
            yield member, module
