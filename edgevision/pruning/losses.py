"""The loss that channels are weighed by: a classifier's with class indices or its own answers, a detector's with boxes.

Labels of a batch are int64 [B], or whatever the loss that goes with them takes; a slice of them must be the labels of
the pictures in that slice. None: they are not known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from edgevision.errors import UsageError

Labels = Any
# (what a network answers, labels of the same pictures) → mean over them
Loss = Callable[[Any, Labels], Tensor]


def classification_loss(answers: Any, labels: Labels) -> Tensor:
    """Cross-entropy of logits [B, classes] with class indices.

    Raises:
        UsageError: an answer that is not one tensor [B, classes], or labels that are not known.
    """
    return functional.cross_entropy(_logits(answers), labels)


def own_answers(answers: Any) -> Tensor:
    """Where labels are not known: the classes a network answers with, int64 [B]. Raises as `classification_loss`."""
    return _logits(answers).detach().argmax(1)


def _logits(answers: Any) -> Tensor:
    if not isinstance(answers, Tensor) or answers.dim() != 2:
        raise UsageError(
            "importance 'taylor' and scope 'measured' look at a loss: they need a classifier, whose answer is one "
            "tensor [B, classes], or a detector and pictures with boxes"
        )
    return answers


def loss_of(model: nn.Module) -> Loss:
    """The loss of a network's task."""
    detects = getattr(model, "task", None) == "detection"
    return detection_loss(model) if detects else classification_loss


def detection_loss(detector: nn.Module) -> Loss:
    """What a detector is trained with; labels are `edgevision.training.detection.targets.Targets`.

    Objects are assigned by geometry alone, so that networks cut in different ways are asked for the same.
    """
    from edgevision.training.detection.criterion import build_criterion

    criterion = build_criterion(detector, assigner="atss")
    return lambda maps, targets: criterion(maps, targets)["loss"]
