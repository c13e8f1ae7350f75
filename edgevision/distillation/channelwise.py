"""Channels that look at the same places as the teacher's. Shu et al. 2021, arXiv 2011.13256."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def channelwise_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL divergence of each channel's softmax over its H·W places: ``T² / C · Σ_c KL(teacher_c ‖ student_c)``.

    Equations 4 and 5, mean over the batch. What counts is where a channel answers, not how strongly: made for dense
    heads, whose maps are mostly background.

    Args:
        student: ``[B, C, H, W]``, adapted to the teacher's width and size; H·W of 2 or more.
        teacher: of the same shape; no gradient flows into it.
        temperature: T, above 0; higher ones look at more places.
    """
    log_student = functional.log_softmax(student.flatten(2) / temperature, dim=2)
    log_teacher = functional.log_softmax(teacher.detach().flatten(2) / temperature, dim=2)
    divergence = functional.kl_div(log_student, log_teacher, reduction="sum", log_target=True)
    return divergence * (temperature**2 / (student.shape[0] * student.shape[1]))
