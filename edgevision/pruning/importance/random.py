"""Random importance: the control that every other measure has to beat."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from torch import nn

from edgevision.pruning.groups import ChannelGroup
from edgevision.pruning.importance import FloatArray, ScoringData


def random(model: nn.Module, groups: Iterable[ChannelGroup], data: ScoringData) -> dict[str, FloatArray]:
    """Uniform numbers that follow from the seed and the order of the groups."""
    numbers = np.random.default_rng(data.seed)
    return {group.name: numbers.uniform(size=group.channels) for group in groups}
