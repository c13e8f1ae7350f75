"""Varifocal loss: confidence that means how good the box is. Zhang et al. 2021, arXiv 2008.13367, equation 2."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def varifocal_loss(logits: Tensor, quality: Tensor, *, alpha: float = 0.75, gamma: float = 2.0) -> Tensor:
    """``−q (q log p + (1 − q) log(1 − p))`` where q > 0, else ``−α p^γ log(1 − p)``, with p = sigmoid(logits).

    Only the background is weighed down by how easy it is; an object counts by its quality.

    Args:
        logits: ``[...]``.
        quality: ``[...]``, in [0, 1]: what the IoU of the box with its object is, 0 for the background.
        alpha: weight of the background.
        gamma: how much easy background is weighed down.

    Returns:
        ``[...]``, 0 or more.
    """
    entropy = functional.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    return torch.where(quality > 0, quality, alpha * logits.sigmoid().pow(gamma)) * entropy
