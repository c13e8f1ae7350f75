"""The loop itself: one epoch of steps, and one pass of validation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgevision.distillation.answers import Answers
from edgevision.distillation.distiller import Distiller, Lesson
from edgevision.errors import TrainingError, UsageError
from edgevision.images import UInt8Array
from edgevision.training.augment import Augment, Mix, draw_mix, neighbors
from edgevision.training.checkpointing import (
    RunProgress,
    TrainingState,
    capture_optimizer,
    restore_module,
    restore_optimizer,
)
from edgevision.training.config import RunConfig, TrainConfig
from edgevision.training.distributed import Processes
from edgevision.training.ema import ExponentialMovingAverage
from edgevision.training.meter import Meter, OnStep
from edgevision.training.optimizers import create_optimizer
from edgevision.training.schedules import learning_rate
from edgevision.training.source import ImageSource, IntArray, Normalizer, Source, epoch_plan


@dataclass(frozen=True)
class EpochResult:
    """What one pass over the training pictures gave: means over the pictures, and the speed."""

    loss: float
    accuracy: float
    lr: float
    images_per_second: float
    seconds: float


class BaseTrainer:
    """A network with everything that moves it, whatever its loss: optimizer, average, gradient scaler.

    Args:
        model: trained in place.
        source: the pictures to train on.
        run: settings of the run.
        processes: those that train together.
        lesson: a teacher to learn from besides the labels or boxes, and what.
        dtype: what convolutions and matrix products compute in.
        layout: order of activations in memory; where torch cannot train the network in it, it is the usual one.

    Raises:
        UsageError: the batch does not divide among the processes, or the lesson's layers do not fit the networks.
        TrainingError: fewer pictures than processes, or a teacher with other classes.
    """

    def __init__(
        self,
        model: nn.Module,
        source: Source,
        run: RunConfig,
        processes: Processes,
        lesson: Lesson | None,
        *,
        dtype: torch.dtype,
        layout: torch.memory_format,
    ) -> None:
        self.run = run
        self.processes = processes
        self.lesson = lesson
        self.distiller: Distiller | None = None
        self.batch_size = global_batch(run.batch_size, len(source), processes.world_size)
        self.steps_per_epoch = len(source) // self.batch_size
        device = processes.device
        self.dtype = dtype
        self.memory_format = torch.contiguous_format if breaks_channels_last(model, dtype, device) else layout
        self.model = model.to(device)
        if self.memory_format is torch.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # missing in torch's stubs
        self.average = ExponentialMovingAverage(self.model, run.ema_decay) if run.ema_decay else None
        if lesson is not None:
            self.distiller = self._distiller(lesson, source)
        # the model, with distillation's adapters where there are any
        self.trained = self.model if self.distiller is None else self.distiller.network
        self.optimizer = create_optimizer(self.trained, run)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)
        self.normalize = Normalizer(source.preprocess, device)
        self._network: nn.Module | None = None

    def answers(self) -> Answers | None:
        """How the network's answers are compared with a teacher's; None for logits."""
        return None

    def _distiller(self, lesson: Lesson, source: Source) -> Distiller:
        preprocess = source.preprocess
        example = torch.zeros(1, preprocess.channels, *preprocess.size, device=self.processes.device)
        return Distiller(
            self.model,
            lesson.teacher,
            lesson.config,
            example=example.contiguous(memory_format=self.memory_format),
            preprocess=preprocess,
            classes=source.dataset.classes,
            seed=self.run.seed,
            memory_format=self.memory_format,
            answers=self.answers(),
        )

    @property
    def result(self) -> nn.Module:
        """The network that is validated and kept: the average where there is one."""
        return self.model if self.average is None else self.average.module

    def capture(self, progress: RunProgress) -> TrainingState:
        """The state after an epoch, distillation's adapters included."""
        return TrainingState(
            progress,
            self.model.state_dict(),
            {} if self.average is None else self.average.module.state_dict(),
            capture_optimizer(self.optimizer),
            self.scaler.state_dict(),
            {} if self.distiller is None else self.distiller.adapters.state_dict(),
        )

    def restore(self, state: TrainingState) -> None:
        """Go back to a state that `capture` took.

        Raises:
            TrainingError: the state is another model's.
        """
        restore_module(self.model, state.model, "the saved state")
        if self.average is not None:
            restore_module(self.average.module, state.average, "the saved average")
        if self.distiller is not None:
            restore_module(self.distiller.adapters, state.adapters, "the saved state of distillation's adapters")
        restore_optimizer(self.optimizer, state.optimizer)
        if state.scaler:
            self.scaler.load_state_dict(state.scaler)

    def begin(self, epoch: int) -> nn.Module:
        """Seed an epoch (from 0) and give the network to run, in training mode."""
        # dropout's numbers follow from the epoch, so that a resumed run draws the same ones
        seeds = np.random.SeedSequence([self.run.seed, epoch, self.processes.rank])
        torch.manual_seed(int(seeds.generate_state(1)[0]))
        self.trained.train()
        if self._network is None:  # wrapped late: DDP sends rank 0's weights at that moment
            self._network = self.processes.wrap(self.trained)
        return self._network

    def share(self, indices: IntArray) -> IntArray:
        """This process's columns of an epoch's plan ``[steps, batch_size]``."""
        rank, count = self.processes.rank, self.batch_size // self.processes.world_size
        return indices[:, rank * count : (rank + 1) * count]

    def set_rate(self, epoch: int, step: int) -> float:
        """Give the optimizer the learning rate of a step, and return it."""
        lr = learning_rate(self.run, epoch * self.steps_per_epoch + step, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def descend(self, loss: Tensor, epoch: int, step: int) -> None:
        """Backpropagate a loss, take the step, and take its weights into the average."""
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.run.grad_clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.trained.parameters(), self.run.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.model, epoch * self.steps_per_epoch + step)

    def end(self) -> None:
        """Bring the processes' statistics together after an epoch."""
        self.processes.average_buffers(self.model)
        if self.average is not None:
            self.processes.average_buffers(self.average.module)


class Trainer(BaseTrainer):
    """A classifier with everything that moves it.

    Args:
        model: maps float32 ``[B, C, H, W]`` to logits ``[B, num_classes]``; trained in place.
        source: the training pictures.
        config: settings of the run.
        processes: those that train together.
        lesson: a teacher to learn from besides the labels, and what.

    Raises:
        UsageError: the batch does not divide among the processes, the precision does not fit the device, or the
            lesson's layers do not fit the networks.
        TrainingError: fewer pictures than processes, or a teacher with other classes.
    """

    def __init__(
        self,
        model: nn.Module,
        source: ImageSource,
        config: TrainConfig,
        processes: Processes,
        lesson: Lesson | None = None,
    ) -> None:
        self.config = config
        self.source = source
        device = processes.device
        super().__init__(
            model,
            source,
            config,
            processes,
            lesson,
            dtype=autocast_dtype(config.precision, device),
            layout=memory_format(config.channels_last, device),
        )
        self.augment = Augment(config)

    def train_epoch(self, epoch: int, on_step: OnStep) -> EpochResult:
        """One pass over the training pictures.

        Args:
            epoch: from 0.
            on_step: called with the number of steps taken and a line of loss, accuracy and speed.

        Raises:
            TrainingError: the loss is no number any more.
            DataError: a picture cannot be read.
        """
        network = self.begin(epoch)
        plan = self.share(epoch_plan(self.config.seed, epoch, len(self.source), self.batch_size))
        meter = Meter(self, epoch, on_step, self._described)
        lr = self.config.lr
        for step, (pixels, labels) in enumerate(self.source.read_ahead(lambda rows: self._read(rows, epoch), plan)):
            lr = self.set_rate(epoch, step)
            meter.add(self._step(network, pixels, labels, epoch, step))
        self.end()
        means, speed, seconds = meter.finish()
        return EpochResult(means["loss"], self._accuracy(means), lr, speed, seconds)

    def _accuracy(self, means: Mapping[str, float]) -> float:
        """Share of right answers: they are counted by process, and the batch is that of all together."""
        return means["correct"] * self.processes.world_size / self.batch_size

    def _described(self, means: Mapping[str, float]) -> str:
        return f"loss {means['loss']:.3f}  accuracy {self._accuracy(means):.1%}"

    def _read(self, indices: IntArray, epoch: int) -> tuple[UInt8Array, IntArray]:
        return self.augment(self.source.pixels(indices), indices, epoch), self.source.labels[indices]

    def _step(
        self, network: nn.Module, pixels: UInt8Array, classes: IntArray, epoch: int, step: int
    ) -> dict[str, Tensor]:
        images = self.normalize(pixels, self.memory_format)
        labels = torch.from_numpy(classes).to(self.processes.device, non_blocking=True)
        mix = draw_mix(self.config, epoch, step, images.shape[2], images.shape[3])
        if mix is not None:
            images = mix.images(images)
        loss, correct = self._loss(network, images, labels, mix)
        self.descend(loss, epoch, step)
        return {"loss": loss.detach(), "correct": correct}

    def _loss(self, network: nn.Module, images: Tensor, labels: Tensor, mix: Mix | None) -> tuple[Tensor, Tensor]:
        """The loss of a batch as the network sees it, and how many answers are right."""
        smoothing, distiller = self.config.label_smoothing, self.distiller
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype is not torch.float32):
            # the teacher first, while no activations of the student's wait for their backward pass
            taught = None if distiller is None else distiller.teach(images)
            outputs = network(images)
        if distiller is None or taught is None:
            return classification_loss(outputs.float(), labels, mix, smoothing)
        logits, features = outputs
        loss, correct = classification_loss(logits.float(), labels, mix, smoothing)
        return distiller.label_weight * loss + distiller.loss(logits, features, taught), correct


def classification_loss(
    logits: Tensor, labels: Tensor, mix: Mix | None, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of a batch and how many answers are right.

    A mixed batch has ``λ · CE(own label) + (1 − λ) · CE(neighbour's label)``, and its right answers are weighed
    the same way.

    Args:
        logits: float32 ``[B, num_classes]``.
        labels: int64 ``[B]``.
        mix: how the pictures were mixed; None where they were not.
        label_smoothing: see `TrainConfig`.
    """
    answers = logits.detach().argmax(1)
    loss = functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    correct = (answers == labels).sum()
    if mix is None:
        return loss, correct
    others = labels[neighbors(len(labels), labels.device)]
    other_loss = functional.cross_entropy(logits, others, label_smoothing=label_smoothing)
    other_correct = (answers == others).sum()
    share = mix.weight
    return share * loss + (1 - share) * other_loss, share * correct + (1 - share) * other_correct


@torch.no_grad()
def evaluate(model: nn.Module, source: ImageSource, processes: Processes, batch_size: int) -> tuple[float, float]:
    """Mean cross-entropy and accuracy (0 to 1) of ``model`` in fp32 on inputs exactly as `Preprocess` makes them.

    Each process takes every ``world_size``-th picture; the sums are over all of them.
    """
    was_training = model.training
    model.eval()
    mine = np.arange(processes.rank, len(source), processes.world_size)
    plan = [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
    loss = torch.zeros((), dtype=torch.float64, device=processes.device)
    correct = torch.zeros((), dtype=torch.float64, device=processes.device)
    for inputs, classes in source.read_ahead(lambda rows: (source.inputs(rows), source.labels[rows]), plan):
        labels = torch.from_numpy(classes).to(processes.device)
        logits = model(torch.from_numpy(inputs).to(processes.device)).float()
        loss += functional.cross_entropy(logits, labels, reduction="sum")
        correct += (logits.argmax(1) == labels).sum()
    model.train(was_training)
    totals = processes.sum(torch.stack([loss, correct]))
    return totals[0] / len(source), totals[1] / len(source)


def global_batch(wanted: int, pictures: int, world_size: int) -> int:
    """Pictures per step over all processes: as wanted, or fewer where the set is smaller than one batch.

    Raises:
        UsageError: ``wanted`` does not divide among the processes.
        TrainingError: fewer pictures than processes.
    """
    if wanted % world_size:
        raise UsageError(
            f"batch_size {wanted} does not divide among {world_size} processes; it is the batch of all of them "
            f"together: use a multiple of {world_size}"
        )
    if pictures < world_size:
        raise TrainingError(f"{pictures} pictures are too few for {world_size} processes")
    return min(wanted, pictures // world_size * world_size)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type that convolutions and matrix products compute in.

    ``auto`` is bf16 on GPUs that compute in it (Ampere and later), fp16 on those that do not, fp32 on CPUs.

    Raises:
        UsageError: fp16 on a CPU, whose gradients would underflow without gaining speed.
    """
    if precision == "fp16" and device.type != "cuda":
        raise UsageError("precision 'fp16' needs a GPU; on a CPU use 'fp32' or 'bf16'")
    if precision == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def memory_format(channels_last: bool | str, device: torch.device) -> torch.memory_format:
    """Order of activations in memory; ``auto`` is channels-last where tensor cores want it."""
    wanted = device.type == "cuda" if channels_last == "auto" else bool(channels_last)
    return torch.channels_last if wanted else torch.contiguous_format


def breaks_channels_last(model: nn.Module, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether torch would write past its memory: seen in torch 2.13, on CPUs in fp32.

    There the weights' gradient of a 1 × 1 convolution with a stride and a few input channels, as RepVGG's stems have
    one, is computed channels-last in a buffer that is too small. Up to 12 channels were seen to, 16 not.
    """
    if device.type != "cpu" or dtype is not torch.float32:
        return False
    return any(
        isinstance(layer, nn.Conv2d)
        and tuple(layer.kernel_size) == (1, 1)
        and max(layer.stride) > 1
        and layer.in_channels // layer.groups < 16
        for layer in model.modules()
    )
