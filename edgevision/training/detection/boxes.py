"""Boxes in torch: left, top, right, bottom in the last dimension, in any one unit."""

from __future__ import annotations

import torch
from torch import Tensor


def centres(boxes: Tensor) -> Tensor:
    """Centre x and y of boxes ``[..., 4]``: ``[..., 2]``."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def around(middles: Tensor, half: Tensor) -> Tensor:
    """Boxes ``[..., 4]`` of centres and half their sides, ``[..., 2]`` each."""
    return torch.cat((middles - half, middles + half), dim=-1)
