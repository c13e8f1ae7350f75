"""`train`: from a network and data to a checkpoint, resumed where an earlier call stopped."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import NoneType

from torch import nn

from edgevision.checkpoint import Checkpoint, is_checkpoint
from edgevision.data import open_dataset
from edgevision.data.base import Dataset
from edgevision.distillation.config import DistillConfig
from edgevision.distillation.distiller import Lesson
from edgevision.distillation.teacher import Teacher, open_teacher
from edgevision.errors import UsageError
from edgevision.preprocess import Preprocess
from edgevision.training.base import Run, prepared
from edgevision.training.checkpointing import RunProgress
from edgevision.training.config import RunConfig, TrainConfig, recipe_for
from edgevision.training.folder import RunFolder
from edgevision.training.inputs import architecture_of, check_classes, check_preprocess, default_preprocess, hold_out
from edgevision.training.loop import EpochResult, Trainer, evaluate
from edgevision.training.metrics import COLUMNS, Row
from edgevision.training.request import TrainRequest
from edgevision.training.source import ImageSource


def train(
    model: nn.Module | Checkpoint | str | Path,
    data: str | Path | Dataset,
    *,
    out: str | Path,
    epochs: int | None = None,
    config: RunConfig | None = None,
    preprocess: Preprocess | None = None,
    val_data: str | Path | Dataset | None = None,
    images: str | Path | None = None,
    resume: bool = True,
    device: str | None = None,
    changes: tuple[str, ...] = (),
    teacher: Teacher | Checkpoint | nn.Module | str | Path | None = None,
    distill: DistillConfig | None = None,
) -> Checkpoint:
    """Train a network, or go on training one, and keep the one that validates best: by accuracy, detectors by mAP.

    The run folder ``out`` is itself a `Checkpoint`. A call on a finished run returns its checkpoint at once; on
    one that was stopped or killed it goes on from the last finished epoch and ends, on a CPU, with the same bits
    as if it had never stopped. Under ``torchrun`` all processes train together and the first one writes.

    Args:
        model: a network of `create_model`, pruned or fused since or not: float32 ``[B, C, H, W]`` → logits
            ``[B, num_classes]``, or a detector. Trained in place; in the end it holds the weights of the checkpoint.
            Or a Checkpoint, or the folder of one, to begin with: its preprocess and its ``changes`` go on. A
            detector's may know other classes than the data: then the layers that depend on them begin anew.
        data: a data set or its name (``"digits"``, ``"npz:data/cifar10"``); by name, its parts ``train`` and
            ``test`` are used.
        out: the run folder.
        epochs: replaces the config's.
        config: settings, a `TrainConfig`, for detectors a `edgevision.training.detection.config.DetectionConfig`; by
            default the recipe of `edgevision.training.config.recipe_for` or of `recipe_for_boxes`.
        preprocess: by default the Checkpoint's that is begun with, or the preset for the data, fitted to the model's
            input.
        val_data: what to validate on; by default the data's test part, or where it is not divided, every tenth
            picture of each class (for detectors every tenth picture), which is then not trained on. For detectors
            ``instances_val.json`` beside ``instances_train.json`` is taken, too.
        images: folder of the pictures of a COCO file, where they are not beside it.
        resume: False starts over, whatever ``out`` holds.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``; by default a GPU where there is one.
        changes: what was done to the network before (``Checkpoint.changes``); ``"trained"`` is added, or
            ``"distilled"`` where there is a teacher.
        teacher: a trained network to learn from besides the labels, see `edgevision.distillation.open_teacher`. It
            answers the same augmented and mixed pictures that the model sees. A detector's is a detector.
        distill: what is learned from it; by default its answers, see `DistillConfig`.

    Raises:
        UsageError: settings or inputs that do not go together.
        DataError: data that cannot be read.
        CheckpointError: a checkpoint that cannot be read.
        TrainingError: ``out`` is another run's, the data does not fit, a teacher with other classes, or the loss
            became NaN.
        OutputError: ``out`` cannot be written.
        KeyboardInterrupt: Ctrl-C, with a message that says how to resume.
    """
    model, begun = _begin(model, out)
    lesson = _lesson(teacher, distill, out)
    request = TrainRequest(
        model, begun, data, val_data, images, out, epochs, config, preprocess, resume, device, changes, lesson
    )
    if is_detector(model):
        from edgevision.training.detection.run import train_detector

        return train_detector(request)
    return _train_classifier(request)


def _train_classifier(request: TrainRequest) -> Checkpoint:
    """See `train`."""
    model, config = request.model, request.config
    if request.images is not None:
        raise UsageError("images (--images) names the pictures' folder of a COCO file, which detectors are trained on")
    if not isinstance(config, (TrainConfig, NoneType)):
        raise UsageError(f"a classifier's settings are a TrainConfig; got a {type(config).__name__}")
    arguments = architecture_of(model)["arguments"]
    input_size = int(arguments["input_size"])
    training, validation = open_parts(request.data, request.val_data)
    preprocess = request.known_preprocess or default_preprocess(
        training.name, input_size=input_size, in_channels=arguments["in_channels"]
    )
    check_preprocess(preprocess, model)
    for dataset in (training, validation):
        check_classes(dataset, model)
    config = request.lasting(config or recipe_for(training.name, input_size=input_size))
    with prepared(request.device, config.threads) as group:
        sources = (
            ImageSource(training, preprocess, workers=config.workers),
            ImageSource(validation, preprocess, workers=config.workers),
        )
        run = ClassificationRun(
            model, *sources, config, RunFolder(request.out), group, request.changes, request.begun, request.lesson
        )
        return run.execute(request.resume)


def is_detector(model: nn.Module) -> bool:
    """Whether a network answers with boxes."""
    return getattr(model, "task", None) == "detection"


def _begin(model: nn.Module | Checkpoint | str | Path, out: str | Path) -> tuple[nn.Module, Checkpoint | None]:
    """The network to train, and the checkpoint that it comes from, where it comes from one."""
    if isinstance(model, nn.Module):
        return model, None
    if not isinstance(model, Checkpoint):
        if not is_checkpoint(model):
            raise UsageError(f"train takes a network of create_model or a Checkpoint folder; {model} is none")
        check_elsewhere(model, out, "network to begin with")
        model = Checkpoint.open(model)
    return model.build(), model


def _lesson(
    teacher: Teacher | Checkpoint | nn.Module | str | Path | None, distill: DistillConfig | None, out: str | Path
) -> Lesson | None:
    if teacher is None:
        if distill is not None:
            raise UsageError("distill says what to learn from a teacher: give a teacher, too")
        return None
    if isinstance(teacher, (str, Path)):
        check_elsewhere(teacher, out, "teacher")
    return Lesson(open_teacher(teacher), distill or DistillConfig())


def check_elsewhere(source: str | Path, out: str | Path, what: str) -> None:
    """Refuse to train in the folder of what is begun with.

    The run's own checkpoint would take the place of what it begins with, and nothing could resume.

    Raises:
        UsageError: the two are one folder; ``what`` is for the message.
    """
    if Path(source).resolve() == Path(out).resolve():
        raise UsageError(f"{out} holds the {what}; write the new one into another folder with -o")


def open_parts(data: str | Path | Dataset, val_data: str | Path | Dataset | None) -> tuple[Dataset, Dataset]:
    """The training and the validation part.

    Data that is not divided gives the same pictures for every part; then a part is held out, see
    `edgevision.training.inputs.hold_out`.
    """
    training = open_dataset(data, split="train")
    if val_data is not None:
        return training, open_dataset(val_data, split="test")
    if not isinstance(data, (str, Path)):
        return hold_out(training)
    whole = open_dataset(data, split=None)
    return hold_out(whole) if len(whole) == len(training) else (training, open_dataset(data, split="test"))


@dataclass
class ClassificationRun(Run[Trainer, ImageSource, TrainConfig]):
    """A run of a classifier."""

    task = "classification"
    columns = COLUMNS
    score = "val_accuracy"

    def trainer(self) -> Trainer:
        """What moves the network."""
        return Trainer(self.model, self.training, self.config, self.processes, self.lesson)

    def epoch(self, trainer: Trainer, epoch: int, on_step: Callable[[int, str], None]) -> Row:
        """Train an epoch (from 0), validate, and tell of it."""
        result = trainer.train_epoch(epoch, on_step)
        assert isinstance(self.validation, ImageSource)
        loss, accuracy = evaluate(trainer.result, self.validation, self.processes, trainer.batch_size)
        return _row(epoch + 1, trainer, result, loss, accuracy)

    def metrics(self, progress: RunProgress) -> dict[str, float | None]:
        """What the checkpoint says of the network it keeps."""
        return {"top1": progress.best_accuracy, "loss": progress.best_loss, "epoch": float(progress.best_epoch)}


def _row(epoch: int, trainer: Trainer, result: EpochResult, loss: float, accuracy: float) -> Row:
    return {
        "epoch": epoch,
        "step": epoch * trainer.steps_per_epoch,
        "lr": result.lr,
        "train_loss": result.loss,
        "train_accuracy": result.accuracy,
        "val_loss": loss if math.isfinite(loss) else None,
        "val_accuracy": accuracy,
        "images_per_second": round(result.images_per_second, 1),
        "seconds": round(result.seconds, 3),
    }
