"""Taylor: how much the loss would change without a channel, to first order. Molchanov et al. 2019, arXiv 1906.10771."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgevision.errors import UsageError
from edgevision.pruning.groups import ChannelGroup
from edgevision.pruning.importance import FloatArray, ScoringData
from edgevision.pruning.losses import Labels, own_answers

# Pictures whose gradients are added before they are squared. Over many they cancel: on CIFAR-10 (RepVGG-A0, half of
# the multiply-adds) 4 kept 42.1% of the answers right before any training, 16 kept 38.1% and 64 kept 37.3%.
_TOGETHER = 4


def taylor(model: nn.Module, groups: Iterable[ChannelGroup], data: ScoringData) -> dict[str, FloatArray]:
    """Mean over few pictures at a time of (Σ gradient · weight)², over the parameters that make a channel (equation 8).

    With batch norms those are γ and β alone, as the paper does (section 3.2). The loss is ``data``'s, by default the
    cross-entropy with the labels, or without labels with the network's own answers. Scores are changes of one loss, so
    groups compare.

    Raises:
        UsageError: no batches, or answers that the loss does not take.
    """
    if not data.batches:
        raise UsageError("importance 'taylor' looks at gradients on pictures: give data")
    working = copy.deepcopy(model).eval().requires_grad_(True)
    group_list = list(groups)
    parameters = [_gates(working, group) for group in group_list]
    totals = [np.zeros(group.channels) for group in group_list]
    chunks = [chunk for inputs, labels in data.batches for chunk in _chunks(inputs, labels)]
    for inputs, labels in chunks:
        working.zero_grad(set_to_none=True)
        with torch.enable_grad():
            answers = working(inputs)
            loss = data.loss(answers, own_answers(answers) if labels is None else labels)
        loss.backward()  # type: ignore[no-untyped-call] # untyped in torch's stubs
        for total, gates in zip(totals, parameters, strict=True):
            change = np.zeros(len(total))
            for parameter, positions in gates:
                if parameter.grad is not None:
                    product = (parameter.grad * parameter.detach()).double().reshape(len(parameter), -1).sum(1)
                    change += product.cpu().numpy()[positions].sum(1)
            total += change**2
    return {group.name: total / len(chunks) for group, total in zip(group_list, totals, strict=True)}


def _chunks(inputs: Tensor, labels: Labels) -> Iterator[tuple[Tensor, Labels]]:
    for start in range(0, len(inputs), _TOGETHER):
        yield inputs[start : start + _TOGETHER], None if labels is None else labels[start : start + _TOGETHER]


def _gates(model: nn.Module, group: ChannelGroup) -> list[tuple[Any, Any]]:
    """Parameters [channels, …] that scale the group's channels, with their positions."""
    modules = dict(model.named_modules())
    norms = [m for m in group.members if isinstance(modules.get(m.name), nn.modules.batchnorm._BatchNorm)]
    found: list[tuple[Any, Any]] = []
    for member in norms or group.producers:
        module = modules[member.name]
        tensors = (module.weight, module.bias)
        found += [(tensor, member.positions) for tensor in tensors if isinstance(tensor, Tensor)]
    return found
