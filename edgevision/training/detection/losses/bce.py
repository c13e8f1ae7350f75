"""Independent logistic classifiers, for labels that overlap. Redmon & Farhadi 2018, arXiv 1804.02767, section 2.2."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def logistic_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """``−(y log p + (1 − y) log(1 − p))``, p = sigmoid(logits), y in [0, 1]: ``[...]`` twice → ``[...]``."""
    return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
