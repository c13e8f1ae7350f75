"""The robust regression loss of SSD and Fast R-CNN. Girshick 2015, arXiv 1504.08083, equation 3."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def smooth_l1_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """``½ d²`` where |d| < 1, else ``|d| − ½``, d = predicted − target: ``[...]`` twice → ``[...]``."""
    return functional.smooth_l1_loss(predicted, target, reduction="none", beta=1.0)
