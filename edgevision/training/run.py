"""`train`: from a network and data to a checkpoint, resumed where an earlier call stopped."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from edgevision.checkpoint import WEIGHTS, Checkpoint, is_checkpoint
from edgevision.data import open_dataset
from edgevision.data.base import Dataset
from edgevision.distillation.config import DistillConfig
from edgevision.distillation.distiller import Lesson
from edgevision.distillation.teacher import Teacher, open_teacher, weights_digest
from edgevision.errors import UsageError
from edgevision.files import sha256_bytes
from edgevision.preprocess import Preprocess
from edgevision.progress import Progress
from edgevision.training.checkpointing import RunProgress, TrainingState
from edgevision.training.config import NOT_PART_OF_THE_RUN, TrainConfig, recipe_for
from edgevision.training.distributed import Processes, processes
from edgevision.training.folder import RunFolder
from edgevision.training.inputs import architecture_of, check_classes, check_preprocess, default_preprocess, hold_out
from edgevision.training.loop import EpochResult, Trainer, evaluate
from edgevision.training.metrics import MetricsLog, Row
from edgevision.training.source import ImageSource
from edgevision.training.threads import torch_threads


def train(
    model: nn.Module | Checkpoint | str | Path,
    data: str | Path | Dataset,
    *,
    out: str | Path,
    epochs: int | None = None,
    config: TrainConfig | None = None,
    preprocess: Preprocess | None = None,
    val_data: str | Path | Dataset | None = None,
    resume: bool = True,
    device: str | None = None,
    changes: tuple[str, ...] = (),
    teacher: Teacher | Checkpoint | nn.Module | str | Path | None = None,
    distill: DistillConfig | None = None,
) -> Checkpoint:
    """Train a classifier, or go on training one, and keep the network with the best validation accuracy.

    The run folder ``out`` is itself a `Checkpoint`. A call on a finished run returns its checkpoint at once; on
    one that was stopped or killed it goes on from the last finished epoch and ends, on a CPU, with the same bits
    as if it had never stopped. Under ``torchrun`` all processes train together and the first one writes.

    Args:
        model: a network of `create_model`, pruned or fused since or not: float32 ``[B, C, H, W]`` → logits
            ``[B, num_classes]``. Trained in place; in the end it holds the weights of the checkpoint. Or a Checkpoint,
            or the folder of one, to begin with: its preprocess and its ``changes`` go on.
        data: a data set or its name (``"digits"``, ``"npz:data/cifar10"``); by name, its parts ``train`` and
            ``test`` are used.
        out: the run folder.
        epochs: replaces the config's.
        config: settings; by default the recipe of `edgevision.training.config.recipe_for`.
        preprocess: by default the Checkpoint's that is begun with, or the preset for the data, fitted to the model's
            input.
        val_data: what to validate on; by default the data's test part, or where it is not divided, every tenth
            picture of each class, which is then not trained on.
        resume: False starts over, whatever ``out`` holds.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``; by default a GPU where there is one.
        changes: what was done to the network before (``Checkpoint.changes``); ``"trained"`` is added, or
            ``"distilled"`` where there is a teacher.
        teacher: a trained network to learn from besides the labels, see `edgevision.distillation.open_teacher`. It
            answers the same augmented and mixed pictures that the model sees.
        distill: what is learned from it; by default its logits, see `DistillConfig`.

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
    arguments = architecture_of(model)["arguments"]
    input_size = int(arguments["input_size"])
    training, validation = open_parts(data, val_data)
    if preprocess is None and begun is not None:
        preprocess = begun.preprocess
    if preprocess is None:
        preprocess = default_preprocess(training.name, input_size=input_size, in_channels=arguments["in_channels"])
    check_preprocess(preprocess, model)
    for dataset in (training, validation):
        check_classes(dataset, model)
    config = config or recipe_for(training.name, input_size=input_size)
    if epochs is not None and epochs != config.epochs:
        config = config.with_epochs(epochs)
    seeded_devices = [] if device == "cpu" else list(range(torch.cuda.device_count()))
    # the caller's random numbers go on as if no training had taken place
    with processes(device) as group, torch.random.fork_rng(devices=seeded_devices), torch_threads(config.threads):
        sources = (
            ImageSource(training, preprocess, workers=config.workers),
            ImageSource(validation, preprocess, workers=config.workers),
        )
        history = changes if begun is None else (*begun.changes, *changes)
        return _Run(model, *sources, config, RunFolder(out), group, history, lesson, begun).execute(resume)


def _begin(model: nn.Module | Checkpoint | str | Path, out: str | Path) -> tuple[nn.Module, Checkpoint | None]:
    """The network to train, and the checkpoint that it comes from, where it comes from one."""
    if isinstance(model, nn.Module):
        return model, None
    if not isinstance(model, Checkpoint):
        if not is_checkpoint(model):
            raise UsageError(f"train takes a network of create_model or a Checkpoint folder; {model} is none")
        _check_elsewhere(model, out, "network to begin with")
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
        _check_elsewhere(teacher, out, "teacher")
    return Lesson(open_teacher(teacher), distill or DistillConfig())


def _check_elsewhere(source: str | Path, out: str | Path, what: str) -> None:
    """The run's own checkpoint would take the place of what it begins with, and nothing could resume."""
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
class _Run:
    """One call of `train`, with its parts resolved."""

    model: nn.Module
    training: ImageSource
    validation: ImageSource
    config: TrainConfig
    folder: RunFolder
    processes: Processes
    changes: tuple[str, ...]
    lesson: Lesson | None
    begun: Checkpoint | None

    def execute(self, resume: bool) -> Checkpoint:
        # before the folder is claimed: a mistake in the settings must not make it another run's
        identity = self._identity(self._checkpoint(self.model, {}))
        trainer = Trainer(self.model, self.training, self.config, self.processes, self.lesson)
        data = self.processes.on_main(lambda: self._open_folder(identity, resume))
        if data == _FINISHED:
            return self._reopen()
        progress = RunProgress()
        if data:
            state = TrainingState.from_bytes(data, str(self.folder.state))
            trainer.restore(state)
            progress = state.progress
        log = self._open_log(progress)
        try:
            if progress.epoch and progress.best_epoch == progress.epoch:
                self._publish(trainer, progress)  # it may have been killed before it could
            self._epochs(trainer, progress, log)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(self._how_to_resume()) from None
        finally:
            if log is not None:
                log.close()
        self.processes.on_main(lambda: self._finish(progress))
        return self._reopen()

    def _open_log(self, progress: RunProgress) -> MetricsLog | None:
        if not self.processes.main:
            return None
        return MetricsLog(self.folder.path, progress.history, tensorboard=self.config.tensorboard)

    def _open_folder(self, identity: dict[str, Any], resume: bool) -> bytes:
        """Claim the folder; its last state, empty for a new run, `_FINISHED` for one that is done."""
        self.folder.claim(identity, resume=resume)
        return _FINISHED if self.folder.finished.exists() else self.folder.read_state()

    def _identity(self, initial: Checkpoint) -> dict[str, Any]:
        """What makes two calls the same run."""
        config = {name: value for name, value in self.config.to_dict().items() if name not in NOT_PART_OF_THE_RUN}
        return {
            "config": config,
            "architecture": json.loads(json.dumps(architecture_of(self.model))),
            "changes": list(self.changes),
            "initial_statistics": _buffers_digest(self.model),
            "data": _data_identity(self.training),
            "validation": _data_identity(self.validation),
            "preprocess": self.training.preprocess.to_dict(),
            **({"channels": _digest_of(initial.channels)} if initial.channels else {}),
            **({} if self.begun is None else {"initial_weights": weights_digest(self.model)}),
            **({} if self.lesson is None else self.lesson.identity),
        }

    def _epochs(self, trainer: Trainer, progress: RunProgress, log: MetricsLog | None) -> None:
        if self._stops(progress):
            return
        self.training.fill_cache("reading training pictures", show=self.processes.main)
        self.validation.fill_cache("reading validation pictures", show=self.processes.main)
        name = architecture_of(self.model)["name"]
        doing = "training" if self.lesson is None else "distilling"
        with _Bar(f"{doing} {name}", self.config, trainer, progress, show=self.processes.main) as bar:
            while not self._stops(progress):
                result = trainer.train_epoch(progress.epoch, bar.step)
                loss, accuracy = evaluate(trainer.result, self.validation, self.processes, trainer.batch_size)
                row = _row(progress.epoch + 1, trainer, result, loss, accuracy)
                _advance(progress, trainer, row)
                self.processes.on_main(partial(self._keep, trainer, progress, log, row))
                bar.epoch_done(row)

    def _keep(self, trainer: Trainer, progress: RunProgress, log: MetricsLog | None, row: Row) -> bytes:
        # the state first: a run killed between the two publishes from it when it resumes
        trainer.capture(progress).save(self.folder.state)
        if progress.best_epoch == progress.epoch:
            self._publish(trainer, progress)
        if log is not None:
            log.append(row)
        return b""

    def _stops(self, progress: RunProgress) -> bool:
        patience = self.config.early_stop
        tired = bool(patience) and progress.epoch - progress.best_epoch >= patience
        return progress.epoch >= self.config.epochs or tired

    def _publish(self, trainer: Trainer, progress: RunProgress) -> None:
        if not self.processes.main:
            return
        metrics = {"top1": progress.best_accuracy, "loss": progress.best_loss, "epoch": float(progress.best_epoch)}
        self._checkpoint(trainer.result, metrics).save(self.folder.path)

    def _checkpoint(self, model: nn.Module, metrics: dict[str, float | None]) -> Checkpoint:
        outputs = architecture_of(model)["arguments"]["num_classes"]
        known = (self.training.dataset.classes, () if self.begun is None else self.begun.classes)
        classes = next((names for names in known if len(names) == outputs), ())
        done = "trained" if self.lesson is None else "distilled"
        return Checkpoint.from_model(
            model,
            preprocess=self.training.preprocess,
            classes=classes,
            # more of the same is no other step
            changes=self.changes if self.changes[-1:] == (done,) else (*self.changes, done),
            metrics=metrics,
        )

    def _finish(self, progress: RunProgress) -> bytes:
        self.folder.finish(
            {
                "epochs": progress.epoch,
                "best_epoch": progress.best_epoch,
                "val_accuracy": progress.best_accuracy,
                "val_loss": progress.best_loss,
            }
        )
        return b""

    def _reopen(self) -> Checkpoint:
        """The kept checkpoint; its weights go into the model, on every process."""
        held: list[Checkpoint] = []

        def read() -> bytes:
            held.append(Checkpoint.open(self.folder.path))
            return (self.folder.path / WEIGHTS).read_bytes()

        weights = safetensors.torch.load(self.processes.on_main(read))
        self.model.load_state_dict(weights)
        # other machines need not see the folder: they have the weights, and the rest follows from them
        return held[0] if held else self._checkpoint(self.model, {})

    def _how_to_resume(self) -> str:
        return (
            f"training stopped; its finished epochs are kept in {self.folder.path}: run the same command again to go "
            "on from there"
        )


# no state begins like this: a safetensors file begins with the length of its header
_FINISHED = b"finished"


class _Bar:
    """The progress bar of a run: over all steps that are left, so that the time left is the run's."""

    def __init__(
        self, description: str, config: TrainConfig, trainer: Trainer, progress: RunProgress, *, show: bool
    ) -> None:
        self.epochs = config.epochs
        self.epoch = progress.epoch + 1
        steps = (config.epochs - progress.epoch) * trainer.steps_per_epoch
        self._progress = Progress(description, steps) if show else None
        self._validated = ""

    def __enter__(self) -> _Bar:
        if self._progress is not None:
            self._progress.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._progress is not None:
            self._progress.__exit__(*error)

    def step(self, steps: int, status: str) -> None:
        """Show a step's figures."""
        if self._progress is not None:
            self._progress.advance(steps, f"epoch {self.epoch}/{self.epochs}  {status}{self._validated}")

    def epoch_done(self, row: Row) -> None:
        """Show an epoch's validation beside the steps of the next one."""
        self.epoch += 1
        self._validated = f"  validated {row['val_accuracy']:.1%}"


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


def _advance(progress: RunProgress, trainer: Trainer, row: Row) -> None:
    """Take an epoch into the account; of equal accuracies the lower loss is better."""
    progress.epoch = row["epoch"]
    progress.step = row["step"]
    progress.history.append(row)

    def rank(accuracy: float | None, loss: float | None) -> tuple[float, float]:
        return (-1.0 if accuracy is None else accuracy, float("-inf") if loss is None else -loss)

    if rank(row["val_accuracy"], row["val_loss"]) > rank(progress.best_accuracy, progress.best_loss):
        progress.best_epoch = row["epoch"]
        progress.best_accuracy = row["val_accuracy"]
        progress.best_loss = row["val_loss"]


def _data_identity(source: ImageSource) -> dict[str, Any]:
    return {"pictures": len(source), "digest": source.digest}


def _digest_of(value: Any) -> str:
    return sha256_bytes(json.dumps(value, sort_keys=True).encode())[:16]


def _buffers_digest(model: nn.Module) -> str:
    """Hash of the batch norms' statistics: fresh networks share it whatever their random weights, trained ones differ.

    So an interrupted run resumes without its initial weights being made again, while the fine-tuning of another
    network is told apart.
    """
    digest = hashlib.sha256()
    for name, value in model.named_buffers():
        digest.update(name.encode() + value.detach().cpu().double().numpy().tobytes())
    return digest.hexdigest()[:16]
