"""What a network's answers are, and how a teacher's are learned: logits here, raw maps of detectors in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from edgevision.distillation.config import DistillConfig
from edgevision.distillation.logits import logits_loss
from edgevision.distillation.teacher import Teacher
from edgevision.errors import TrainingError, UsageError


class Answers(Protocol):
    """How the answers of one kind of network are compared with a teacher's."""

    # whether pictures are brought to the teacher's own size
    resizes: bool

    def prepared(self, config: DistillConfig, teacher: Teacher, size: tuple[int, int]) -> DistillConfig:
        """The config with what its names stand for at a ``size`` (height, width) of the input.

        A teacher that does not fit it is refused.
        """
        ...

    def check(self, student: Any, answers: Any, teacher: Teacher, classes: Sequence[str]) -> None:
        """Refuse a teacher whose answers cannot be learned, told from both answers to an example."""
        ...

    def weights(self, alpha: float, progress: float) -> tuple[float, float]:
        """Share of the labels and of the teacher's answers when ``progress`` of the run, 0 to 1, is done."""
        ...

    def loss(self, student: Any, teacher: Any, temperature: float) -> Tensor:
        """Scalar, from both answers."""
        ...


class LogitAnswers:
    """A classifier's logits ``[B, num_classes]``; labels and teacher share one unit of weight."""

    resizes = True

    def prepared(self, config: DistillConfig, teacher: Teacher, size: tuple[int, int]) -> DistillConfig:
        """Layers have their own names here."""
        del teacher, size
        return config

    def check(self, student: Any, answers: Any, teacher: Teacher, classes: Sequence[str]) -> None:
        """See `Answers.check`.

        Raises:
            UsageError: outputs that are no logits.
            TrainingError: a teacher with other classes, or with outputs that are no numbers.
        """
        for whose, outputs in (("student", student), ("teacher", answers)):
            if not isinstance(outputs, Tensor) or outputs.ndim != 2:
                shape = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
                raise UsageError(
                    f"the {whose} puts out {shape}; logits to distil are [B, num_classes]. For other networks name "
                    "layers (features or channelwise) and set alpha = 0"
                )
        if len(classes) == student.shape[1]:  # fewer names than outputs do not say which is which
            teacher.check_classes(classes)
        if student.shape[1] != answers.shape[1]:
            raise TrainingError(
                f"a teacher with other classes: {teacher.name} tells {answers.shape[1]} apart, the student "
                f"{student.shape[1]}; take a teacher of the same classes, or learn from its layers alone (alpha = 0 "
                "with features)"
            )
        check_finite([answers], teacher)

    def weights(self, alpha: float, progress: float) -> tuple[float, float]:
        """``1 − alpha`` and ``alpha``, all the time."""
        del progress
        return 1.0 - alpha, alpha

    def loss(self, student: Any, teacher: Any, temperature: float) -> Tensor:
        """`logits_loss`."""
        return logits_loss(student.float(), teacher.float(), temperature)


def check_finite(answers: Sequence[Tensor], teacher: Teacher) -> None:
    """Refuse a teacher whose answers are no numbers.

    Raises:
        TrainingError: see above.
    """
    if not all(bool(torch.isfinite(answer).all()) for answer in answers):
        raise TrainingError(f"the teacher {teacher.name} answers with NaN or infinity; its weights are of no use")


def independent_loss(student: Tensor, teacher: Tensor, temperature: float, weight: Tensor) -> Tensor:
    """``T² Σ_c KL(σ(teacher_c / T) ‖ σ(student_c / T))``, mean over the places by their weights.

    For classifiers of which each says yes or no for itself; a softmax over them would not see what all of them say,
    and of one class nothing at all.

    Args:
        student: logits ``[..., C]``.
        teacher: of the same shape; no gradient flows into it.
        temperature: T, above 0.
        weight: ``[...]``, of each place, 0 or more.
    """
    softened, wanted = student / temperature, teacher.detach() / temperature
    sigmoid = functional.logsigmoid
    yes = wanted.sigmoid() * (sigmoid(wanted) - sigmoid(softened))
    no = (-wanted).sigmoid() * (sigmoid(-wanted) - sigmoid(-softened))
    return _weighed((yes + no).sum(-1), weight) * temperature**2


def distribution_loss(student: Tensor, teacher: Tensor, temperature: float, weight: Tensor) -> Tensor:
    """``T² KL(softmax(teacher / T) ‖ softmax(student / T))`` over the last dimension; otherwise `independent_loss`."""
    log_student = functional.log_softmax(student / temperature, dim=-1)
    log_teacher = functional.log_softmax(teacher.detach() / temperature, dim=-1)
    divergence = functional.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1)
    return _weighed(divergence, weight) * temperature**2


def _weighed(values: Tensor, weight: Tensor) -> Tensor:
    weight = weight.detach()
    # a teacher that is sure of nothing at all teaches nothing
    return (values * weight).sum() / weight.sum().clamp_min(1e-6)
