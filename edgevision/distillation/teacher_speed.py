"""A teacher that answers the same in less time: branches fused, batch norms folded into the layer before them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from edgevision.distillation.recorder import recorded
from edgevision.models.reparameterize import reparameterize

# largest difference, in units of the largest value: float32 sums in another order stay far below, and a network that
# uses its layers otherwise than in their order is far above
_TOLERANCE = 1e-3


def quickened(network: nn.Module, layers: Sequence[str], shape: Sequence[int]) -> nn.Module:
    """A copy of ``network`` in eval mode, of equal outputs up to rounding, that still has the named ``layers``.

    RepVGG's branches become one convolution, and in every `nn.Sequential` a batch norm right behind a convolution
    is folded into it. A convolution whose own output is asked for keeps its batch norm. Where a picture of noise
    ``shape`` ``[B, C, H, W]`` shows another answer, the copy is a plain one.
    """
    plain = copy.deepcopy(network).eval().requires_grad_(False)
    quick = reparameterize(plain)
    if not set(layers) <= {name for name, _ in quick.named_modules()}:
        quick = copy.deepcopy(plain)
    uses = _uses(quick)
    for parent, module in list(quick.named_modules()):
        # a subclass that only builds its layers runs them in their order all the same
        if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
            _fold(module, f"{parent}." if parent else "", set(layers), uses)
    weight = next(plain.parameters(), torch.empty(0))
    noise = torch.randn(list(shape), generator=torch.Generator().manual_seed(0)).to(weight.device)
    pairs = zip(_answers(plain, layers, noise), _answers(quick, layers, noise), strict=True)
    return quick.requires_grad_(False) if all(_close(*pair) for pair in pairs) else plain


def _answers(network: nn.Module, layers: Sequence[str], images: Tensor) -> list[Tensor]:
    with torch.inference_mode(), recorded(network, layers) as found:
        outputs = network(images)
    return [*_tensors(outputs), *(found[name] for name in layers if name in found)]


def _tensors(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    values = list(outputs.values()) if isinstance(outputs, dict) else outputs
    return [tensor for value in values for tensor in _tensors(value)] if isinstance(values, (list, tuple)) else []


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    if not one.numel():
        return True
    return bool((one - other).abs().max() <= _TOLERANCE * one.abs().max().clamp_min(1e-6))


def _uses(network: nn.Module) -> dict[nn.Module, int]:
    """How many places hold each module: what is shared must not be changed in one of them."""
    counts: dict[nn.Module, int] = {}
    for module in network.modules():
        for child in module._modules.values():
            if child is not None:
                counts[child] = counts.get(child, 0) + 1
    return counts


def _fold(sequence: nn.Sequential, prefix: str, wanted: set[str], uses: dict[nn.Module, int]) -> None:
    for first, second in itertools.pairwise(list(sequence._modules)):
        conv, norm = sequence._modules[first], sequence._modules[second]
        # exactly these: a subclass may compute something else
        if not (isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)) or norm.running_mean is None:
            continue
        if type(conv) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d or uses[conv] > 1 or uses[norm] > 1:
            continue
        if f"{prefix}{first}" in wanted:
            continue
        sequence._modules[first] = fuse_conv_bn_eval(conv, norm)
        sequence._modules[second] = nn.Identity()
