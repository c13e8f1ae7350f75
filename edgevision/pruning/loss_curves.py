"""How much the loss grows as a group is cut deeper and deeper, measured: what importance alone cannot tell.

Scores of single channels do not add up: of channels that can replace each other any one can go, not all. So groups are
compared by what happens when their least important channels really go, one group at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edgevision.errors import UsageError
from edgevision.progress import track
from edgevision.pruning.apply import remove_channels
from edgevision.pruning.groups import ChannelGroup, ChannelGroups
from edgevision.pruning.importance import ScoringData
from edgevision.pruning.losses import Labels, Loss, own_answers
from edgevision.pruning.planning import choose_channels
from edgevision.pruning.rounding import legal_counts

Scores = Mapping[str, npt.NDArray[np.float64]]

# depths at which each group is tried; between them the loss is interpolated
_DEPTHS = 5

# pictures, and multiply-adds of all trials together (about a minute on one core), whichever is fewer
_PICTURES, _BUDGET, _LEAST_PICTURES = 128, 1e12, 32


def loss_curves(
    model: nn.Module,
    groups: ChannelGroups,
    scores: Scores,
    data: ScoringData,
    *,
    multiple: int,
    most: float,
    macs: int,
) -> dict[str, npt.NDArray[np.float64]]:
    """Group → float64 [channels + 1]: growth of the loss when it keeps so many of its channels.

    Batch norms take the statistics of the batch, as they will once the network is trained again: the shift that a cut
    makes is not counted, only what it loses. The loss is ``data``'s: by default the cross-entropy with the labels, or
    without them with the network's own answers.

    Args:
        model: a network that the loss fits; it is not changed.
        groups: found in it.
        scores: which channels of a group go first.
        data: pictures with labels or without, and the loss.
        multiple: channels stay multiples of this.
        most: the largest fraction of a group that is removed.
        macs: multiply-adds of one picture.

    Raises:
        UsageError: no batches, or answers that the loss does not take.
    """
    if not data.batches:
        raise UsageError("scope 'measured' looks at the loss on pictures: give data, or scope global or uniform")
    tried = {group.name: _depths(group, multiple, most) for group in groups}
    trials = sum(len(counts) for counts in tried.values()) + 1
    pictures = int(max(_LEAST_PICTURES, min(_PICTURES, _BUDGET / (trials * max(macs, 1)))))
    uncut = _on_batch_statistics(copy.deepcopy(model))
    chosen = [
        (images, own_answers(_run(uncut, images)) if labels is None else labels)
        for images, labels in _first(data.batches, pictures)
    ]
    whole = _loss(uncut, chosen, data.loss)
    curves = {}
    for group in track(list(groups), "measure what each group is worth", len(groups)):
        counts = [*tried[group.name], group.channels]
        cuts = (remove_channels(model, groups, choose_channels(scores, {group.name: n})) for n in tried[group.name])
        growth = [_loss(_on_batch_statistics(cut), chosen, data.loss) - whole for cut in cuts]
        # noise must not make a deeper cut look better than a lighter one
        falling = np.maximum.accumulate([0.0, *reversed(growth)])[::-1]
        curves[group.name] = np.interp(np.arange(group.channels + 1), counts, falling)
    return curves


def _depths(group: ChannelGroup, multiple: int, most: float) -> list[int]:
    legal = [count for count in legal_counts(group, multiple)[:-1] if count >= group.channels * (1 - most)]
    if len(legal) <= _DEPTHS:
        return legal
    return [legal[int(index)] for index in np.linspace(0, len(legal) - 1, _DEPTHS).round()]


def _first(batches: Sequence[tuple[Tensor, Labels]], pictures: int) -> list[tuple[Tensor, Labels]]:
    chosen: list[tuple[Tensor, Labels]] = []
    for images, labels in batches:
        if pictures <= 0:
            break
        chosen.append((images[:pictures], None if labels is None else labels[:pictures]))
        pictures -= len(images)
    return chosen


@torch.no_grad()
def _run(model: nn.Module, images: Tensor) -> Any:
    return model(images)


def _on_batch_statistics(model: nn.Module) -> nn.Module:
    """The network itself, its batch norms told to take each batch's own statistics."""
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    return model


@torch.no_grad()
def _loss(model: nn.Module, batches: Sequence[tuple[Tensor, Labels]], loss: Loss) -> float:
    total = sum(float(loss(model(images), labels)) * len(images) for images, labels in batches)
    return total / sum(len(images) for images, _ in batches)
