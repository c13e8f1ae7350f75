"""Distribution focal loss: a side's distance as a distribution. Li et al. 2020, arXiv 2006.04388, equation 6."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def distribution_focal_loss(logits: Tensor, distance: Tensor) -> Tensor:
    """``−((i + 1 − y) log S_i + (y − i) log S_{i+1})`` for a distance y between i and i + 1, S = softmax(logits).

    Args:
        logits: ``[..., n + 1]``, for the distances 0, 1, …, n; n of 1 or more.
        distance: ``[...]``; beyond [0, n] it counts as the end that is nearer.

    Returns:
        ``[...]``, 0 or more.
    """
    n = logits.shape[-1] - 1
    distance = distance.clamp(0, n)
    lower = distance.floor().clamp(max=n - 1)
    share = distance - lower
    log_probability = functional.log_softmax(logits, dim=-1)
    index = lower.to(torch.int64)[..., None]
    below = log_probability.gather(-1, index)[..., 0]
    above = log_probability.gather(-1, index + 1)[..., 0]
    return -((1 - share) * below + share * above)


def expected_distance(logits: Tensor) -> Tensor:
    """``Σ i S_i``, the distance that a distribution stands for (equation 5): ``[..., n + 1]`` → ``[...]``."""
    distances = torch.arange(logits.shape[-1], dtype=logits.dtype, device=logits.device)
    return logits.softmax(dim=-1) @ distances
