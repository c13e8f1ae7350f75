"""How much the loss grows as a group is cut deeper and deeper, measured: what importance alone cannot tell.

Scores of single channels do not add up: of channels that can replace each other any one can go, not all. So groups are
compared by what happens when their least important channels really go, one group at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgevision.errors import UsageError
from edgevision.progress import track
from edgevision.pruning.apply import remove_channels
from edgevision.pruning.groups import ChannelGroup, ChannelGroups
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
    batches: Sequence[tuple[Tensor, Tensor | None]],
    *,
    multiple: int,
    most: float,
    macs: int,
) -> dict[str, npt.NDArray[np.float64]]:
    """Group → float64 [channels + 1]: growth of the loss when it keeps so many of its channels.

    Batch norms take the statistics of the batch, as they will once the network is trained again: the shift that a cut
    makes is not counted, only what it loses. The loss is the cross-entropy with the labels, or without them with the
    network's own answers.

    Args:
        model: a classifier; it is not changed.
        groups: found in it.
        scores: which channels of a group go first.
        batches: inputs float32 [B, C, H, W] with class indices int64 [B] or None.
        multiple: channels stay multiples of this.
        most: the largest fraction of a group that is removed.
        macs: multiply-adds of one picture.

    Raises:
        UsageError: no batches, or a network whose answer is not one tensor [B, classes].
    """
    if not batches:
        raise UsageError("scope 'measured' looks at the loss on pictures: give data, or scope global or uniform")
    tried = {group.name: _depths(group, multiple, most) for group in groups}
    trials = sum(len(counts) for counts in tried.values()) + 1
    pictures = int(max(_LEAST_PICTURES, min(_PICTURES, _BUDGET / (trials * max(macs, 1)))))
    chosen = _first(batches, pictures)
    uncut = _on_batch_statistics(copy.deepcopy(model))
    answers = [labels for _, labels in chosen if labels is not None] or _answers(uncut, chosen)
    whole = _loss(uncut, chosen, answers)
    curves = {}
    for group in track(list(groups), "measure what each group is worth", len(groups)):
        counts = [*tried[group.name], group.channels]
        cuts = (remove_channels(model, groups, choose_channels(scores, {group.name: n})) for n in tried[group.name])
        growth = [_loss(_on_batch_statistics(cut), chosen, answers) - whole for cut in cuts]
        # noise must not make a deeper cut look better than a lighter one
        falling = np.maximum.accumulate([0.0, *reversed(growth)])[::-1]
        curves[group.name] = np.interp(np.arange(group.channels + 1), counts, falling)
    return curves


def _depths(group: ChannelGroup, multiple: int, most: float) -> list[int]:
    legal = [count for count in legal_counts(group, multiple)[:-1] if count >= group.channels * (1 - most)]
    if len(legal) <= _DEPTHS:
        return legal
    return [legal[int(index)] for index in np.linspace(0, len(legal) - 1, _DEPTHS).round()]


def _first(batches: Sequence[tuple[Tensor, Tensor | None]], pictures: int) -> list[tuple[Tensor, Tensor | None]]:
    chosen: list[tuple[Tensor, Tensor | None]] = []
    for images, labels in batches:
        if pictures <= 0:
            break
        chosen.append((images[:pictures], None if labels is None else labels[:pictures]))
        pictures -= len(images)
    return chosen


@torch.no_grad()
def _logits(model: nn.Module, images: Tensor) -> Tensor:
    logits = model(images)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise UsageError("scope 'measured' needs a classifier, whose answer is one tensor [B, classes]")
    return logits


def _on_batch_statistics(model: nn.Module) -> nn.Module:
    """The network itself, its batch norms told to take each batch's own statistics."""
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    return model


def _answers(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor | None]]) -> list[Tensor]:
    return [_logits(model, images).argmax(1) for images, _ in batches]


def _loss(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor | None]], answers: Sequence[Tensor]) -> float:
    total = 0.0
    for (images, _), wanted in zip(batches, answers, strict=True):
        total += float(functional.cross_entropy(_logits(model, images), wanted, reduction="sum"))
    return total / sum(len(images) for images, _ in batches)
