"""What `train` was asked for, for the trainings of each task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import nn

from edgevision.checkpoint import Checkpoint
from edgevision.data.base import Dataset
from edgevision.distillation.distiller import Lesson
from edgevision.preprocess import Preprocess
from edgevision.training.config import RunConfig

C = TypeVar("C", bound=RunConfig)


@dataclass(frozen=True)
class TrainRequest:
    """One call of `edgevision.training.train`, which says what each argument means; None is left to the task.

    Attributes:
        model: the network.
        begun: the checkpoint that it was built from, where it was built from one.
        data: what to train on.
        val_data: what to validate on.
        images: folder of the pictures of a COCO file.
        out: the run folder.
        epochs: replaces the config's.
        config: settings.
        preprocess: how pictures become the network's input.
        resume: whether to go on where an earlier call stopped.
        device: where to train.
        changes: what was done to the network before.
        lesson: teacher, and what is learned from it.
    """

    model: nn.Module
    begun: Checkpoint | None
    data: str | Path | Dataset
    val_data: str | Path | Dataset | None
    images: str | Path | None
    out: str | Path
    epochs: int | None
    config: RunConfig | None
    preprocess: Preprocess | None
    resume: bool
    device: str | None
    changes: tuple[str, ...]
    lesson: Lesson | None

    @property
    def known_preprocess(self) -> Preprocess | None:
        """The preprocess that is given, or that of the checkpoint that is begun with."""
        if self.preprocess is None and self.begun is not None:
            return self.begun.preprocess
        return self.preprocess

    def lasting(self, config: C) -> C:
        """``config`` over as many epochs as were asked for."""
        if self.epochs is None or self.epochs == config.epochs:
            return config
        return config.with_epochs(self.epochs)
