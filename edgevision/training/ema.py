"""Exponential moving average of a network's weights.

Polyak & Juditsky 1992, in the form of Tarvainen & Valpola 2017.
"""

from __future__ import annotations

import copy

import torch
from torch import nn


def decay_at(decay: float, updates: int) -> float:
    """Decay of the update after ``updates`` earlier ones: ``min(decay, (1 + n) / (10 + n))``.

    The short memory at the start keeps the random initial weights out of the average.
    """
    return min(decay, (1 + updates) / (10 + updates))


class ExponentialMovingAverage:
    """Keeps ``average ← d · average + (1 − d) · weights`` beside a network that trains.

    Floating buffers (the running statistics of batch normalisation) are averaged like the weights, since they
    belong to the averaged weights; whole-number buffers are copied.

    Args:
        model: the network; copied once.
        decay: d, below 1; see `decay_at` for the start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self._averages = self._tensors(self.module)

    @torch.no_grad()
    def update(self, model: nn.Module, updates: int) -> None:
        """Take in the weights of ``model`` after its step number ``updates`` (from 0)."""
        keep = decay_at(self.decay, updates)
        for average, current in zip(self._averages, self._tensors(model), strict=True):
            if average.is_floating_point():
                average.lerp_(current, 1.0 - keep)
            else:
                average.copy_(current)

    @staticmethod
    def _tensors(model: nn.Module) -> list[torch.Tensor]:
        return [*model.parameters(), *model.buffers()]
