"""Distillation: a network learns from a trained one besides the labels.

``edgevision.train(student, data, out=…, teacher=…, distill=DistillConfig(…))`` and ``edgevision distill`` are made of
these parts; a training loop of your own (a detector's, say) uses them as well::

    DistillConfig(temperature=4.0, alpha=0.5, features=(), feature_weight=1.0,
                  channelwise=(), channelwise_weight=1.0, channelwise_temperature=4.0)
    open_teacher(source, *, weights=None, arguments=None, classes=None, preprocess=None) -> Teacher
    Distiller(student, teacher, config, *, example, preprocess=None, classes=(), seed=0,
              memory_format=torch.contiguous_format, answers=None)
        .network(images) -> (outputs, features)     the student with its adapters: train its parameters
        .teach(images) -> Taught                    what the teacher makes of the same images
        .loss(outputs, features, taught, progress=0.0) -> Tensor
                                                    scalar; the labels' own loss counts ``.label_weight``
    logits_loss, feature_loss, channelwise_loss     (student, teacher, temperature) -> scalar Tensor
    LOSSES                                          the three by name

What answers are depends on the network: logits (`edgevision.distillation.answers.LogitAnswers`), or a detector's maps
(`edgevision.training.detection.teaching.DetectorAnswers`), whose teacher's weight falls with the ``progress`` of a run.
"""

from __future__ import annotations

from edgevision.dependencies import require

# one line that names the extra, before a module of this room fails on its own import
require("torch", purpose="distill networks")

from edgevision.distillation.channelwise import channelwise_loss  # noqa: E402 - after the check above
from edgevision.distillation.config import DistillConfig  # noqa: E402
from edgevision.distillation.distiller import LOSSES, Distiller, Lesson, Taught  # noqa: E402
from edgevision.distillation.features import feature_loss  # noqa: E402
from edgevision.distillation.logits import logits_loss  # noqa: E402
from edgevision.distillation.teacher import Teacher, open_teacher  # noqa: E402

__all__ = [
    "LOSSES",
    "DistillConfig",
    "Distiller",
    "Lesson",
    "Taught",
    "Teacher",
    "channelwise_loss",
    "feature_loss",
    "logits_loss",
    "open_teacher",
]
