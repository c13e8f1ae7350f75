"""Focal loss for dense detection. Lin et al. 2017, arXiv 1708.02002, equation 5."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def focal_loss(logits: Tensor, targets: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """``−α_t (1 − p_t)^γ log p_t``, p_t the probability given to what is true: ``[...]`` twice → ``[...]``.

    Args:
        logits: ``[...]``; p = sigmoid(logits).
        targets: ``[...]``, 1 for the object's class, else 0.
        alpha: α_t of the objects; the background's is 1 − α.
        gamma: how much easy examples are weighed down; 0 leaves a balanced cross-entropy.
    """
    entropy = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    # 1 − p_t, without the cancellation of 1 − sigmoid(x) for large x
    missing = torch.where(targets > 0.5, (-logits).sigmoid(), logits.sigmoid())
    return torch.where(targets > 0.5, alpha, 1 - alpha) * missing.pow(gamma) * entropy
