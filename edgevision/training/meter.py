"""What the steps of an epoch gave, added up."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgevision.errors import TrainingError
from edgevision.training.schedules import learning_rate

if TYPE_CHECKING:
    from edgevision.training.loop import BaseTrainer

# on a GPU, and between processes, looking at a loss costs a wait: look at this many together
_STEPS_PER_LOOK = 20

OnStep = Callable[[int, str], None]


class Meter:
    """Means over the steps of an epoch and over the processes, looked at only every few steps where looking costs.

    Args:
        trainer: whose steps they are.
        epoch: from 0.
        on_step: called with the number of steps taken and a line about them.
        describe: means so far → that line, but for the speed.
    """

    def __init__(
        self, trainer: BaseTrainer, epoch: int, on_step: OnStep, describe: Callable[[Mapping[str, float]], str]
    ) -> None:
        self.trainer = trainer
        self.epoch = epoch
        self.on_step = on_step
        self.describe = describe
        alone_on_cpu = trainer.processes.device.type == "cpu" and trainer.processes.world_size == 1
        self.window = 1 if alone_on_cpu else _STEPS_PER_LOOK
        self.waiting: list[Mapping[str, Tensor]] = []
        self.sums: dict[str, float] = {}
        self.steps = 0
        self.start = time.perf_counter()

    def add(self, figures: Mapping[str, Tensor]) -> None:
        """Take in a step: name → scalar, without gradients; one of them is the ``loss``.

        Raises:
            TrainingError: one of them is no number any more.
        """
        self.waiting.append(figures)
        if len(self.waiting) >= self.window:
            self._look()

    def means(self) -> dict[str, float]:
        """Of all steps that were looked at."""
        return {name: value / self.steps for name, value in self.sums.items()}

    def finish(self) -> tuple[dict[str, float], float, float]:
        """Means of all steps, pictures a second, and seconds."""
        if self.waiting:
            self._look()
        seconds = time.perf_counter() - self.start
        return self.means(), self.steps * self.trainer.batch_size / seconds, seconds

    def _look(self) -> None:
        names = list(self.waiting[0])
        stacked = torch.stack([torch.stack([figures[name].double() for name in names]) for figures in self.waiting])
        # summed over the processes, so that all of them stop when one has lost its numbers
        processes = self.trainer.processes
        values = torch.tensor(processes.sum(stacked.flatten())).reshape(len(self.waiting), -1) / processes.world_size
        for position, step in enumerate(values.tolist()):
            if not all(math.isfinite(value) for value in step):
                raise self._diverged(self.steps + position, step[names.index("loss")])
            for name, value in zip(names, step, strict=True):
                self.sums[name] = self.sums.get(name, 0.0) + value
        count = len(self.waiting)
        self.steps += count
        self.waiting.clear()
        speed = self.steps * self.trainer.batch_size / (time.perf_counter() - self.start)
        self.on_step(count, f"{self.describe(self.means())}  {speed:,.0f} images/s")

    def _diverged(self, step: int, loss: float) -> TrainingError:
        """What to say when the loss of a step (from 0) is no number any more."""
        trainer = self.trainer
        lr = learning_rate(trainer.run, self.epoch * trainer.steps_per_epoch + step, trainer.steps_per_epoch)
        return TrainingError(
            f"the loss became {loss} at step {step + 1} of epoch {self.epoch + 1} (learning rate {lr:.3g}): "
            f"use a lower lr than {trainer.run.lr:g}, a longer warm-up (warmup_epochs), or grad_clip = 1"
        )
