"""A detector's epoch of steps, and its pass of validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgevision.data.datasets import crowd_regions
from edgevision.detection.detections import Detections
from edgevision.detection.evaluation import DetectionMetrics, evaluation_postprocess, mean_average_precision
from edgevision.distillation.answers import Answers
from edgevision.distillation.distiller import Lesson
from edgevision.errors import EngineError, TrainingError
from edgevision.training.detection.config import DetectionConfig
from edgevision.training.detection.criterion import Criterion, build_criterion
from edgevision.training.detection.source import Batch, TrainingPictures, ValidationPictures
from edgevision.training.detection.targets import Targets
from edgevision.training.detection.teaching import DetectorAnswers
from edgevision.training.distributed import Processes
from edgevision.training.inputs import architecture_of
from edgevision.training.loop import BaseTrainer, autocast_dtype, memory_format
from edgevision.training.meter import Meter, OnStep
from edgevision.training.source import epoch_plan


@dataclass(frozen=True)
class DetectionEpoch:
    """What one pass over the training pictures gave: means of the losses over the steps, and the speed."""

    losses: dict[str, float]
    lr: float
    images_per_second: float
    seconds: float


@dataclass(frozen=True)
class DetectionValidation:
    """What one pass over the validation pictures gave."""

    loss: float
    metrics: DetectionMetrics
    detections: list[Detections]


class DetectorTrainer(BaseTrainer):
    """A detector with everything that moves it.

    Args:
        model: maps float32 ``[B, C, H, W]`` to raw maps by name; trained in place.
        source: the training pictures.
        config: settings of the run.
        processes: those that train together.
        lesson: a teacher to learn from besides the boxes, and what.

    Raises:
        UsageError: the batch does not divide among the processes, the precision does not fit the device, or the
            lesson's layers do not fit the networks.
        TrainingError: fewer pictures than processes, or a teacher whose head does not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        source: TrainingPictures,
        config: DetectionConfig,
        processes: Processes,
        lesson: Lesson | None = None,
    ) -> None:
        self.source = source
        self.config = config
        dtype = compute_dtype(config.precision, processes.device)
        super().__init__(
            model,
            source,
            config,
            processes,
            lesson,
            dtype=dtype,
            layout=activation_layout(config.channels_last, dtype, processes.device),
        )
        self.criterion: Criterion = build_criterion(
            model, box_loss=config.box_loss, assigner=config.assigner, warmup_epochs=config.assigner_warmup
        )

    def answers(self) -> Answers:
        """Raw maps of the head."""
        return DetectorAnswers(self.model)

    def train_epoch(self, epoch: int, on_step: OnStep) -> DetectionEpoch:
        """One pass over the training pictures.

        Args:
            epoch: from 0.
            on_step: called with the number of steps taken and a line of losses and speed.

        Raises:
            TrainingError: the loss is no number any more.
            DataError: a picture cannot be read.
        """
        network = self.begin(epoch)
        plan = self.share(epoch_plan(self.config.seed, epoch, len(self.source), self.batch_size))
        meter = Meter(self, epoch, on_step, _described)
        lr = self.config.lr
        batches = self.source.batches(
            self.config,
            epoch,
            plan,
            steps_before=epoch * self.steps_per_epoch,
            multiple=int(getattr(self.model, "size_multiple", 32)),
        )
        for step, batch in enumerate(batches):
            lr = self.set_rate(epoch, step)
            losses = self._losses(network, batch, epoch)
            self.descend(losses["loss"], epoch, step)
            meter.add({name: value.detach() for name, value in losses.items()})
        self.end()
        means, speed, seconds = meter.finish()
        return DetectionEpoch(means, lr, speed, seconds)

    def _losses(self, network: nn.Module, batch: Batch, epoch: int) -> dict[str, Tensor]:
        images = self.normalize(batch.pixels, self.memory_format)
        distiller = self.distiller
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype is not torch.float32):
            # the teacher first, while no activations of the student's wait for their backward pass
            taught = None if distiller is None else distiller.teach(images)
            outputs = network(images)
        targets = batch.targets.to(images.device)
        if distiller is None or taught is None:
            return self.criterion(outputs, targets, epoch)
        maps, features = outputs
        losses = self.criterion(maps, targets, epoch)
        teacher = distiller.loss(maps, features, taught, progress=epoch / self.config.epochs)
        return {**losses, "loss": losses["loss"] + teacher, "teacher": teacher.detach()}

    def validate(self, source: ValidationPictures, epoch: int) -> DetectionValidation:
        """Loss and mAP of the network that would be kept, in fp32 on inputs exactly as `Preprocess` makes them."""
        network = self.result
        total = 0.0

        def add(outputs: dict[str, Tensor], targets: Targets) -> None:
            nonlocal total
            total += float(self.criterion(outputs, targets, epoch)["loss"]) * len(targets.boxes)

        detections = detect(network, source, self.batch_size, self.processes.device, on_batch=add)
        return DetectionValidation(total / len(source), judge(network, source, detections), detections)


def _described(means: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in means.items())


@torch.no_grad()
def detect(
    network: nn.Module,
    source: ValidationPictures,
    batch_size: int,
    device: torch.device,
    *,
    on_batch: Callable[[dict[str, Tensor], Targets], None] | None = None,
) -> list[Detections]:
    """Everything a detector finds in the pictures, with however little confidence, in pixels of each picture.

    It is decoded by the code that decodes on the device. ``on_batch`` is called with the raw maps and the objects.

    Raises:
        TrainingError: the outputs are no numbers any more.
    """
    was_training = network.training
    network.eval()
    detector: Any = network
    # as `edgevision eval` judges bundles
    postprocess = evaluation_postprocess(detector.postprocess())
    found: list[Detections] = []
    for batch in source.batches(batch_size):
        outputs = network(batch.inputs.to(device))
        if on_batch is not None:
            on_batch(outputs, batch.targets.to(device))
        arrays = {name: value.float().cpu().numpy() for name, value in outputs.items()}
        try:
            found += postprocess(arrays, source.preprocess.size, batch.placements, source.dataset.classes)
        except EngineError as error:
            raise TrainingError(f"the network's answers are no numbers any more ({error}); use a lower lr") from error
    network.train(was_training)
    return found


def judge(network: nn.Module, source: ValidationPictures, detections: list[Detections]) -> DetectionMetrics:
    """mAP of what `detect` found."""
    count = int(architecture_of(network)["arguments"]["num_classes"])
    crowds = crowd_regions(source.dataset)
    return mean_average_precision(source.boxes, detections, count, classes=source.dataset.classes, crowds=crowds)


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type that convolutions compute in; ``auto`` is bf16 also on CPUs that multiply tiles of it (AMX).

    There a step of YOLOv6-N takes well under half the time, and weights, sums and losses stay in fp32.
    """
    if precision == "auto" and device.type == "cpu" and _multiplies_tiles():
        return torch.bfloat16
    return autocast_dtype(precision, device)


def _multiplies_tiles() -> bool:
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return supported is not None and bool(supported())


def activation_layout(channels_last: bool | str, dtype: torch.dtype, device: torch.device) -> torch.memory_format:
    """Order of activations in memory; ``auto`` is channels-last on GPUs and where a CPU computes in bf16."""
    if channels_last == "auto" and device.type == "cpu":
        return torch.channels_last if dtype is torch.bfloat16 else torch.contiguous_format
    return memory_format(channels_last, device)
