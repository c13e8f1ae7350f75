"""Hints: maps inside the student made equal to the teacher's. Romero et al. 2015 (FitNets), arXiv 1412.6550."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def feature_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean squared difference of two maps, in units of the teacher's mean square (Romero et al. 2015, equation 3).

    Layers differ in scale by orders of magnitude; the unit lets one weight serve them all.

    Args:
        student: ``[B, C, H, W]`` or ``[B, C]``, adapted to the teacher's width and size.
        teacher: of the same shape; no gradient flows into it.
        temperature: not used: maps are compared as they are.
    """
    del temperature
    teacher = teacher.detach()
    # a map of zeros (a dead layer) has no unit; any other is far above this
    unit = teacher.square().mean().clamp_min(1e-12)
    return functional.mse_loss(student, teacher) / unit


def make_adapter(student_width: int, teacher_width: int) -> nn.Module:
    """What brings the student's channels to the teacher's: a learned 1×1 convolution (the paper's regressor).

    Nothing where the widths are equal: a learned layer there would only let the student's map depart.
    """
    if student_width == teacher_width:
        return nn.Identity()
    return nn.Conv2d(student_width, teacher_width, 1, bias=False)


def same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps ``[B, C, H, W]`` at the smaller height and width of the two, by averaging."""
    height = min(student.shape[2], teacher.shape[2])
    width = min(student.shape[3], teacher.shape[3])
    return _pooled(student, height, width), _pooled(teacher, height, width)


def _pooled(features: Tensor, height: int, width: int) -> Tensor:
    if features.shape[2:] == torch.Size((height, width)):
        return features
    return functional.adaptive_avg_pool2d(features, (height, width))
