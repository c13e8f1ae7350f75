"""Channel shuffles told to the dependency graph, which takes their reshapes for flattening and gives up.

While the network is traced, dense 1×1 convolutions stand in the place of `edgevision.models.shuffle`'s modules. Their
weights select and order channels, so they compute the same; the graph stops at each of them, and which of their inputs
is which of their outputs is said here, position by position.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from edgevision.models.shuffle import Halves, Interleave
from edgevision.pruning.groups import IntArray
from edgevision.pruning.ties import Ties


class ChannelSelection(nn.Conv2d):
    """Output channel i is input channel ``order[i]``."""

    def __init__(self, channels: int, order: IntArray) -> None:
        super().__init__(channels, len(order), 1, bias=False)
        self.order = order
        with torch.no_grad():
            self.weight.zero_()
            self.weight[torch.arange(len(order)), torch.from_numpy(order)] = 1.0


class _SelectedHalves(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        both = np.arange(channels).reshape(2, -1)
        self.left, self.right = (ChannelSelection(channels, half) for half in both)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.left(x), self.right(x)


def with_selections(model: nn.Module, inputs: Tensor) -> nn.Module:
    """A copy whose shuffles are convolutions; ``model`` itself where it has none."""
    widths: dict[str, int] = {}
    shuffles = {name: module for name, module in model.named_modules() if isinstance(module, (Halves, Interleave))}
    if not shuffles:
        return model
    hooks = [
        module.register_forward_pre_hook(lambda _, given, name=name: widths.update({name: given[0].shape[1]}))
        for name, module in shuffles.items()
    ]
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    traced = copy.deepcopy(model)
    for name, channels in widths.items():
        owner, _, attribute = name.rpartition(".")
        setattr(traced.get_submodule(owner), attribute, _selection(shuffles[name], channels))
    return traced


def _selection(module: nn.Module, channels: int) -> nn.Module:
    if isinstance(module, Halves):
        return _SelectedHalves(channels)
    return ChannelSelection(channels, np.arange(channels).reshape(2, -1).T.reshape(-1))


def tie_selections(model: nn.Module, ties: Ties) -> None:
    """Say of every selection of a traced network where its channels go.

    Both halves must lose the same channels, or the network would divide and interleave others than before.
    """
    for module in model.modules():
        if isinstance(module, ChannelSelection):
            read, made = ties.in_slot(module), ties.out_slot(module)
            ties.tie(read, module.order, made, np.arange(made.size))
            first, second = np.arange(read.size).reshape(2, -1)
            ties.tie(read, first, read, second)
            ties.hide(module)
