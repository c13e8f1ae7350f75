"""`train_detector`: from a detector and boxes to a checkpoint; `edgevision.training.train` calls it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgevision.checkpoint import Checkpoint
from edgevision.data import open_dataset
from edgevision.data.base import Dataset, Subset
from edgevision.data.datasets import complaints
from edgevision.errors import DataError, TrainingError, UsageError
from edgevision.models import create_model
from edgevision.preprocess import PRESETS, Preprocess
from edgevision.training.base import Run, prepared
from edgevision.training.checkpointing import RunProgress
from edgevision.training.config import RunConfig
from edgevision.training.detection.config import DetectionConfig, recipe_for_boxes
from edgevision.training.detection.loop import DetectorTrainer
from edgevision.training.detection.source import TrainingPictures, ValidationPictures, tell
from edgevision.training.folder import RunFolder
from edgevision.training.inputs import HOLD_OUT_EVERY, architecture_of, check_preprocess
from edgevision.training.metrics import Row
from edgevision.training.request import TrainRequest

FIGURES = ("map", "map50", "map75", "map_small", "map_medium", "map_large", "recall")
LOSSES = ("loss", "class", "box", "dfl", "objectness", "teacher")
COLUMNS = (
    "epoch",
    "step",
    "lr",
    *(f"train_{name}" for name in LOSSES),
    "val_loss",
    *FIGURES,
    "images_per_second",
    "seconds",
)


def train_detector(request: TrainRequest) -> Checkpoint:
    """Train a detector; see `edgevision.training.train`.

    Raises:
        UsageError: settings or inputs that do not go together.
        DataError: data that cannot be read, or with other classes than the network's.
        TrainingError: see `edgevision.training.train`.
    """
    begun = request.begun
    training, validation = open_detection_parts(request.data, request.val_data, request.images)
    for line in [*complaints(training), *complaints(validation)]:
        tell(line)
    config = request.lasting(_settings(request.config, len(training)))
    model = with_classes(request.model, training, seed=config.seed, begun=begun)
    arguments = architecture_of(model)["arguments"]
    preprocess = request.known_preprocess or detection_preprocess(arguments)
    check_preprocess(preprocess, model)
    with prepared(request.device, config.threads) as group:
        sources = (
            TrainingPictures(training, preprocess, arguments["num_classes"], workers=config.workers),
            ValidationPictures(validation, preprocess, arguments["num_classes"], workers=config.workers),
        )
        run = DetectionRun(
            model, *sources, config, RunFolder(request.out), group, request.changes, begun, request.lesson
        )
        return run.execute(request.resume)


def _settings(config: RunConfig | None, pictures: int) -> DetectionConfig:
    if config is None:
        config = recipe_for_boxes(pictures)
    if not isinstance(config, DetectionConfig):
        raise UsageError(f"a detector's settings are a DetectionConfig; got a {type(config).__name__}")
    return config


def detection_preprocess(arguments: dict[str, Any]) -> Preprocess:
    """Letterbox to a detector's input, values 0 to 1.

    Raises:
        UsageError: a number of channels that pictures do not have.
    """
    channels = arguments["in_channels"]
    if channels not in (1, 3):
        raise UsageError(f"pictures have 1 or 3 channels, the model takes {channels}; give a preprocess that fits")
    preset = PRESETS["letterbox"].with_size(arguments["input_size"], arguments["input_size"])
    return preset if channels == 3 else replace(preset, color="GRAY", mean=(0.0,), std=(1.0,))


def open_detection_parts(
    data: str | Path | Dataset, val_data: str | Path | Dataset | None, images: str | Path | None
) -> tuple[Dataset, Dataset]:
    """The training and the validation part.

    Without ``val_data``: the data's own part, or for a file named ``…train…`` the one named ``…val…`` beside it, or
    every tenth picture, which is then not trained on.

    Raises:
        DataError: they cannot be read, or their classes differ.
        TrainingError: too few pictures for one to be spared.
    """
    training = open_dataset(data, split="train", images=images)
    if val_data is None and isinstance(data, (str, Path)):
        beside = validation_beside(data)
        if beside is not None:
            val_data = beside
            tell(f"validating on {beside}")
        elif len(open_dataset(data, images=images)) != len(training):
            val_data = data
    if val_data is None:
        return hold_out_pictures(training)
    validation = open_dataset(val_data, split="test", images=images if isinstance(val_data, (str, Path)) else None)
    if validation.classes != training.classes:
        raise DataError(
            f"{validation.name} has the classes {', '.join(validation.classes)}; {training.name}, which is trained "
            f"on, has {', '.join(training.classes)}: both must have the same in the same order"
        )
    return training, validation


def validation_beside(data: str | Path) -> str | None:
    """The same name with ``val`` for ``train`` in its last part, where there is such a file."""
    kind, _, path = str(data).rpartition(":") if isinstance(data, str) else ("", "", str(data))
    named = Path(path).expanduser()
    if "train" not in named.name or not named.is_file():
        return None
    beside = named.with_name(named.name.replace("train", "val"))
    return f"{kind}:{beside}" if kind and beside.is_file() else str(beside) if beside.is_file() else None


def hold_out_pictures(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """Split off every tenth picture to validate on.

    Raises:
        TrainingError: too few pictures for one to be spared.
    """
    spared = range(HOLD_OUT_EVERY - 1, len(dataset), HOLD_OUT_EVERY)
    if not len(spared):
        raise TrainingError(
            f"{dataset.name} has {len(dataset)} pictures, too few to hold every tenth out to validate on; name "
            "validation data (val_data)"
        )
    rest = [index for index in range(len(dataset)) if index not in spared]
    return Subset(dataset, rest), Subset(dataset, list(spared))


def with_classes(model: nn.Module, dataset: Dataset, *, seed: int, begun: Checkpoint | None) -> nn.Module:
    """The detector for as many classes as the data has.

    One that comes from a checkpoint of other classes keeps all its weights but those whose shapes depend on the
    number of classes: the last layers of its head, which begin anew.

    Raises:
        DataError: a fresh detector for fewer classes than the data has.
    """
    architecture = architecture_of(model)
    arguments, wanted = architecture["arguments"], len(dataset.classes)
    if arguments["num_classes"] == wanted or not wanted:
        return model
    if begun is None:
        if arguments["num_classes"] > wanted:
            return model
        raise DataError(
            f"{dataset.name} has {wanted} classes, the network {arguments['num_classes']}; create it with "
            f"num_classes={wanted}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        plain, fresh = (
            create_model(architecture["name"], **{**arguments, "num_classes": count})
            for count in (arguments["num_classes"], wanted)
        )
    shapes = {name: value.shape for name, value in plain.state_dict().items()}
    renewed = [name for name, value in fresh.state_dict().items() if value.shape != shapes[name]]
    _keep_others(model, fresh, renewed)
    layers = sorted({name.rpartition(".")[0] for name in renewed})
    tell(
        f"the checkpoint knows {arguments['num_classes']} classes, {dataset.name} has {wanted}: begun anew are "
        f"{', '.join(layers)}; every other layer keeps its weights"
    )
    return fresh


def _keep_others(model: nn.Module, fresh: nn.Module, renewed: list[str]) -> None:
    """Give a fresh network what a trained one has, channel counts included, but for ``renewed``."""
    from edgevision.models.channels import changed_counts, resize

    counts = changed_counts(model)
    convolutions = {name.rpartition(".")[0] for name in renewed}
    named = dict(fresh.named_modules())
    for layer in convolutions & counts.keys():
        # what pruning took from its input stays taken; its outputs are the new classes'
        counts[layer] = [counts[layer][0], int(named[layer].out_channels), *counts[layer][2:]]
    resize(fresh, counts)
    state = {name: value for name, value in model.state_dict().items() if name not in renewed}
    fresh.load_state_dict({**fresh.state_dict(), **state})


@dataclass
class DetectionRun(Run[DetectorTrainer, TrainingPictures, DetectionConfig]):
    """A run of a detector."""

    task = "detection"
    columns = COLUMNS
    score = "map"

    def trainer(self) -> DetectorTrainer:
        """What moves the network."""
        return DetectorTrainer(self.model, self.training, self.config, self.processes, self.lesson)

    def epoch(self, trainer: DetectorTrainer, epoch: int, on_step: Callable[[int, str], None]) -> Row:
        """Train an epoch (from 0), validate where it is time, and tell of it."""
        result = trainer.train_epoch(epoch, on_step)
        row: Row = {
            "epoch": epoch + 1,
            "step": (epoch + 1) * trainer.steps_per_epoch,
            "lr": result.lr,
            **{f"train_{name}": value for name, value in result.losses.items()},
            "images_per_second": round(result.images_per_second, 1),
            "seconds": round(result.seconds, 3),
        }
        if (epoch + 1) % self.config.validate_every == 0 or epoch + 1 == self.config.epochs:
            row |= self._validated(trainer, epoch)
        return row

    def _validated(self, trainer: DetectorTrainer, epoch: int) -> Row:
        def measure() -> bytes:
            assert isinstance(self.validation, ValidationPictures)
            found = trainer.validate(self.validation, epoch)
            figures = {name: getattr(found.metrics, name) for name in FIGURES}
            loss = found.loss if math.isfinite(found.loss) else None
            return json.dumps({"val_loss": loss, **figures}).encode()

        # one process validates: every detection must come together in one place anyhow
        row: Row = json.loads(self.processes.on_main(measure))
        return row

    def metrics(self, progress: RunProgress) -> dict[str, float | None]:
        """What the checkpoint says of the network it keeps."""
        best = next((row for row in progress.history if row["epoch"] == progress.best_epoch), {})
        figures = {name: best.get(name) for name in FIGURES}
        return {**figures, "loss": progress.best_loss, "epoch": float(progress.best_epoch)}

    def before(self, progress: RunProgress) -> bytes:
        """Show what is trained on, once."""
        if self.config.plots and progress.epoch == 0:
            from edgevision.training.detection.plots import draw_data

            draw_data(self.training, self.config, self.folder.path)
        return b""

    def after(self, progress: RunProgress) -> bytes:
        """Show what was learned."""
        if self.config.plots:
            from edgevision.training.detection.plots import draw_results

            assert isinstance(self.validation, ValidationPictures)
            network = Checkpoint.open(self.folder.path).build().to(self.processes.device)
            draw_results(network, self.validation, progress.history, self.folder.path, self.processes.device)
        return b""
