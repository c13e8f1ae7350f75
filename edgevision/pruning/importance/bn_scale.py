"""Batch norm scale: γ as the strength of a channel. Liu et al. 2017, arXiv 1708.06519 (Network Slimming)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from torch import nn

from edgevision.errors import UsageError
from edgevision.pruning.groups import ChannelGroup
from edgevision.pruning.importance import FloatArray, ScoringData


def bn_scale(model: nn.Module, groups: Iterable[ChannelGroup], data: ScoringData) -> dict[str, FloatArray]:
    """Mean of |γ| over the group's batch norms; compared between groups as it is (section 3, global threshold).

    Raises:
        UsageError: a group without batch norms.
    """
    modules = dict(model.named_modules())
    scores: dict[str, FloatArray] = {}
    for group in groups:
        scales = []
        for member in group.members:
            module = modules.get(member.name)
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
                gamma = module.weight.detach().double().abs().cpu().numpy()
                scales.append(gamma[member.positions].mean(1))
        if not scales:
            raise UsageError(
                f"importance 'bn' needs batch norms, and {group.name} has none: use l2, l1, fpgm or taylor"
            )
        scores[group.name] = np.mean(scales, axis=0)
    return scores
