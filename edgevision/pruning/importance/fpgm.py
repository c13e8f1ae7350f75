"""FPGM: filters near the geometric median of their layer can be replaced by the others. He et al. 2019, arXiv
1811.00250."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

from edgevision.pruning.groups import ChannelGroup
from edgevision.pruning.importance import FloatArray, ScoringData
from edgevision.pruning.importance.weights import filters, norm_after, rows


def fpgm(model: nn.Module, groups: Iterable[ChannelGroup], data: ScoringData) -> dict[str, FloatArray]:
    """Sum of a filter's distances to all others (equation 6), over the layers that make the group's channels."""
    norms = norm_after(model)
    scores: dict[str, FloatArray] = {}
    for group in groups:
        total = np.zeros(group.channels)
        for member, module in filters(model, group):
            if member.axis == "in":
                continue
            values = rows(module, member, norms.get(member.name))
            distances = torch.cdist(values, values).sum(1)
            total += (distances / distances.mean().clamp_min(1e-300)).numpy()
        scores[group.name] = total / max(float(total.mean()), 1e-300)
    return scores
