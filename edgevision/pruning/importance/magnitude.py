"""Magnitude: channels whose weights are small matter little. Li et al. 2017, arXiv 1608.08710; over whole groups as in
DepGraph, arXiv 2301.12900, section 3.3."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from torch import nn

from edgevision.pruning.groups import ChannelGroup
from edgevision.pruning.importance import FloatArray, ScoringData
from edgevision.pruning.importance.weights import filters, norm_after, rows


def l1(model: nn.Module, groups: Iterable[ChannelGroup], data: ScoringData) -> dict[str, FloatArray]:
    """Sum of absolute weights."""
    return {group.name: _relative(_magnitude(model, group, 1)) for group in groups}


def l2(model: nn.Module, groups: Iterable[ChannelGroup], data: ScoringData) -> dict[str, FloatArray]:
    """Root of the sum of squared weights."""
    return {group.name: _relative(_magnitude(model, group, 2)) for group in groups}


def _magnitude(model: nn.Module, group: ChannelGroup, order: int) -> FloatArray:
    norms = norm_after(model)
    total = np.zeros(group.channels)
    for member, module in filters(model, group):
        folded = None if member.axis == "in" else norms.get(member.name)
        sums = rows(module, member, folded).abs().pow(order).sum(1)
        # each layer counts the same, however many weights a channel has in it
        total += (sums / sums.mean().clamp_min(1e-300)).numpy()
    return np.asarray(total ** (1 / order))


def _relative(scores: FloatArray) -> FloatArray:
    """Against the mean of the group: groups of large and of small weights become comparable."""
    return scores / max(float(scores.mean()), 1e-300)
