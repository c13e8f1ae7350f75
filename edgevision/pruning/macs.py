"""Multiply-adds and parameters of a network at any channel counts, without building it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgevision.models.channels import CONVOLUTIONS, channel_counts
from edgevision.models.reparameterize import Reparameterizable
from edgevision.pruning.groups import ChannelGroups

Counts = Mapping[str, int]
Cost = Callable[[Counts], float]

# (group, positions of the layer's axis for one channel of it)
_Terms = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class LayerShape:
    """A convolution or linear layer as it is deployed, and how its channels follow from the groups' counts.

    Attributes:
        name: of the module. A RepVGG block counts as its 3×3 branch, which is what remains when it is fused.
        kind: ``conv``, ``depthwise`` or ``linear``.
        in_channels: as the network is now.
        out_channels: likewise.
        groups: likewise.
        kernel: height and width; (1, 1) for linear layers.
        stride: likewise.
        padding: likewise.
        dilation: likewise.
        input_size: height and width; (1, 1) for linear layers.
        output_size: likewise.
        calls: how often one run of the network uses the layer, for a batch of 1.
        bias: whether it has one when deployed (a batch norm behind it becomes one).
        in_terms: groups that its input channels belong to.
        out_terms: likewise of the output channels.
    """

    name: str
    kind: str
    in_channels: int
    out_channels: int
    groups: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    input_size: tuple[int, ...]
    output_size: tuple[int, ...]
    calls: int
    bias: bool
    in_terms: _Terms
    out_terms: _Terms

    def at(self, counts: Counts, full: Counts) -> tuple[int, int, int]:
        """Channels in, channels out and groups of the layer.

        Args:
            counts: channels that the groups keep; groups that are not named are whole.
            full: channels that the groups have now, see `ChannelGroups.counts`.
        """
        channels_in = self.in_channels - _lost(self.in_terms, counts, full)
        channels_out = self.out_channels - _lost(self.out_terms, counts, full)
        # depthwise layers, those with several outputs per channel too: as many groups as inputs
        return channels_in, channels_out, channels_in if self.kind == "depthwise" else self.groups

    def multiply_adds(self, channels_in: int, channels_out: int, groups: int) -> int:
        """Of one picture."""
        outputs = channels_out * self.calls * math.prod(self.output_size)
        return outputs * (channels_in // groups) * math.prod(self.kernel)

    def parameters(self, channels_in: int, channels_out: int, groups: int) -> int:
        """Weights and biases."""
        return channels_out * (channels_in // groups) * math.prod(self.kernel) + channels_out * self.bias


@dataclass(frozen=True)
class CostModel:
    """All convolutions and linear layers of a network.

    Attributes:
        layers: in the order they run.
        full: channels of the groups as the network is now.
    """

    layers: tuple[LayerShape, ...]
    full: Mapping[str, int]

    @classmethod
    def of(cls, model: nn.Module, groups: ChannelGroups) -> CostModel:
        """Follow the shapes through ``model`` (on the meta device: nothing is computed)."""
        terms = _terms(groups)
        calls = _calls(model, groups.input_shape)
        parts = _branches_that_vanish(model)
        biased = _deployed_with_bias(model)
        layers = []
        for name, (sizes, module) in calls.items():
            if name not in parts:
                layers.append(_layer(name, module, sizes, groups.input_shape[0], terms, biased))
        return cls(tuple(layers), groups.counts())

    def macs(self, counts: Counts | None = None) -> int:
        """Multiply-adds of one picture, counted as in `edgevision.models.statistics.count_multiply_adds`."""
        counts = counts or {}
        return sum(layer.multiply_adds(*layer.at(counts, self.full)) for layer in self.layers)

    def parameters(self, counts: Counts | None = None) -> int:
        """Weights and biases of the deployed layers (batch norms folded, branches fused)."""
        counts = counts or {}
        return sum(layer.parameters(*layer.at(counts, self.full)) for layer in self.layers)


def _lost(terms: _Terms, counts: Counts, full: Counts) -> int:
    return sum(per_channel * (full[name] - counts[name]) for name, per_channel in terms if name in counts)


def _terms(groups: ChannelGroups) -> dict[tuple[str, str], _Terms]:
    found: dict[tuple[str, str], _Terms] = {}
    for group in groups:
        for member in group.members:
            for axis in ("in", "out") if member.axis == "both" else (member.axis,):
                key = (member.name, axis)
                found[key] = (*found.get(key, ()), (group.name, member.per_channel))
    return found


_Sizes = list[tuple[tuple[int, ...], tuple[int, ...]]]


def _calls(model: nn.Module, input_shape: tuple[int, ...]) -> dict[str, tuple[_Sizes, nn.Module]]:
    """Name → shapes of inputs and outputs of every call, in the order of the first calls."""
    shadow = copy.deepcopy(model).to("meta").eval()
    found: dict[str, tuple[_Sizes, nn.Module]] = {}

    def hook_of(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            found.setdefault(name, ([], module))[0].append((tuple(inputs[0].shape), tuple(output.shape)))

        return hook

    for name, module in shadow.named_modules():
        if isinstance(module, (*CONVOLUTIONS, nn.Linear)):
            module.register_forward_hook(hook_of(name))
    dtype = next((p.dtype for p in shadow.parameters() if p.is_floating_point()), torch.float32)
    with torch.no_grad():
        shadow(torch.empty(input_shape, dtype=dtype, device="meta"))
    return found


def _branches_that_vanish(model: nn.Module) -> set[str]:
    """Convolutions of unfused blocks that fusing adds into the one with the largest kernel."""
    vanish: set[str] = set()
    for prefix, block in model.named_modules():
        if not isinstance(block, Reparameterizable) or block.is_fused or not isinstance(block, nn.Module):
            continue
        inside = {f"{prefix}.{n}".lstrip("."): m for n, m in block.named_modules() if isinstance(m, CONVOLUTIONS)}
        largest = max(inside, key=lambda name: inside[name].weight[0, 0].numel(), default=None)
        vanish |= inside.keys() - {largest}
    return vanish


def _deployed_with_bias(model: nn.Module) -> set[str]:
    """Convolutions whose norm becomes a bias: where a network has norms, all without a bias of their own."""
    normed = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, (*CONVOLUTIONS, nn.Linear))
        and (module.bias is not None or (normed and isinstance(module, CONVOLUTIONS)))
    }


def _layer(
    name: str,
    module: nn.Module,
    sizes: _Sizes,
    batch: int,
    terms: Mapping[tuple[str, str], _Terms],
    biased: set[str],
) -> LayerShape:
    counts = channel_counts(module)
    assert counts is not None
    channels_in, channels_out, layer_groups = counts
    inputs, outputs = sizes[0]
    common: dict[str, Any] = {
        "name": name,
        "in_channels": channels_in,
        "out_channels": channels_out,
        "groups": layer_groups,
        "bias": name in biased,
        "in_terms": terms.get((name, "in"), ()),
        "out_terms": terms.get((name, "out"), ()),
    }
    if isinstance(module, CONVOLUTIONS):
        padding = module.padding if isinstance(module.padding, tuple) else (0,) * len(module.kernel_size)
        return LayerShape(
            kind="depthwise" if layer_groups == channels_in > 1 else "conv",
            kernel=tuple(module.kernel_size),
            stride=tuple(module.stride),
            padding=tuple(int(value) for value in padding),
            dilation=tuple(module.dilation),
            input_size=inputs[2:],
            output_size=outputs[2:],
            calls=len(sizes),
            **common,
        )
    # a linear layer may be applied at many places of one picture
    rows = sum(math.prod(shape[:-1]) for _, shape in sizes) // batch
    one = (1, 1)
    return LayerShape(
        kind="linear", kernel=one, stride=one, padding=(0, 0), dilation=one, input_size=one, output_size=one,
        calls=rows, **common,
    )  # fmt: skip
