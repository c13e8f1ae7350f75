"""What a head says before it has learned anything."""

from __future__ import annotations

import math

from torch import nn

# RetinaNet's π (arXiv 1708.02002, section 4.1): without it the many empty cells drown the first steps of training
PRIOR_PROBABILITY = 0.01


def prior_logit(probability: float = PRIOR_PROBABILITY) -> float:
    """Logit of a probability."""
    return math.log(probability / (1 - probability))


def small_weights(layer: nn.Module, *, bias: float) -> None:
    """Weights N(0, 0.01), one bias for all (the same section)."""
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    nn.init.normal_(layer.weight, 0.0, 0.01)
    nn.init.constant_(layer.bias, bias)
