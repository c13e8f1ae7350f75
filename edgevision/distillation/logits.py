"""The teacher's softened answers. Hinton, Vinyals & Dean 2015, arXiv 1503.02531, section 2."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def logits_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T² · KL(softmax(teacher / T) ‖ softmax(student / T))``, mean over the batch.

    The factor T² keeps the gradients' size whatever the temperature, so that ``alpha`` means the same at each.

    Args:
        student: logits ``[B, num_classes]``.
        teacher: logits of the same shape; no gradient flows into them.
        temperature: T, above 0.
    """
    log_student = functional.log_softmax(student / temperature, dim=1)
    log_teacher = functional.log_softmax(teacher.detach() / temperature, dim=1)
    divergence = functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2
