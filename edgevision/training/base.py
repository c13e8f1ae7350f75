"""What every run does: claim its folder, go through the epochs, keep the best network, resume where it was stopped."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar

import safetensors.torch
import torch
from torch import nn

from edgevision.checkpoint import WEIGHTS, Checkpoint
from edgevision.distillation.distiller import Lesson
from edgevision.distillation.teacher import weights_digest
from edgevision.files import sha256_bytes
from edgevision.progress import Progress
from edgevision.training.checkpointing import RunProgress, TrainingState
from edgevision.training.config import NOT_PART_OF_THE_RUN, RunConfig
from edgevision.training.distributed import Processes, processes
from edgevision.training.folder import RunFolder
from edgevision.training.inputs import architecture_of
from edgevision.training.loop import BaseTrainer
from edgevision.training.metrics import MetricsLog, Row
from edgevision.training.source import Source
from edgevision.training.threads import torch_threads

T = TypeVar("T", bound=BaseTrainer)
S = TypeVar("S", bound=Source)
C = TypeVar("C", bound=RunConfig)


@contextmanager
def prepared(device: str | None, threads: int | None) -> Iterator[Processes]:
    """The processes of a run. The caller's random numbers and threads go on as if no training had taken place."""
    seeded = [] if device == "cpu" else list(range(torch.cuda.device_count()))
    with processes(device) as group, torch.random.fork_rng(devices=seeded), torch_threads(threads):
        yield group


@dataclass
class Run(ABC, Generic[T, S, C]):
    """One call of `train`, with its parts resolved; what a task has of its own, its subclass adds."""

    model: nn.Module
    training: S
    validation: Source
    config: C
    folder: RunFolder
    processes: Processes
    changes: tuple[str, ...]
    begun: Checkpoint | None
    lesson: Lesson | None

    task: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    # the figure that is validated, in the log; the greatest is the best
    score: ClassVar[str]

    @abstractmethod
    def trainer(self) -> T:
        """What moves the network."""

    @abstractmethod
    def epoch(self, trainer: T, epoch: int, on_step: Callable[[int, str], None]) -> Row:
        """Train an epoch (from 0), validate, and tell of it: a row of ``columns``."""

    @abstractmethod
    def metrics(self, progress: RunProgress) -> dict[str, float | None]:
        """What the checkpoint says of the network it keeps."""

    @property
    def history(self) -> tuple[str, ...]:
        """What was done to the network before, the checkpoint's changes that it begins with included."""
        return self.changes if self.begun is None else (*self.begun.changes, *self.changes)

    @property
    def done(self) -> str:
        """What is done to the network, as ``Checkpoint.changes`` calls it."""
        return "trained" if self.lesson is None else "distilled"

    @property
    def doing(self) -> str:
        """The same as the progress bar calls it."""
        return "training" if self.lesson is None else "distilling"

    def execute(self, resume: bool) -> Checkpoint:
        """Train to the end, or the rest of what an earlier call began."""
        # before the folder is claimed: a mistake in the settings must not make it another run's
        identity = self._identity(self._checkpoint(self.model, {}))
        trainer = self.trainer()
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

    def before(self, progress: RunProgress) -> bytes:
        """What is done on the main process once the pictures are read; returns nothing."""
        return b""

    def after(self, progress: RunProgress) -> bytes:
        """What is done on the main process once the last epoch is kept; returns nothing."""
        return b""

    def _open_log(self, progress: RunProgress) -> MetricsLog | None:
        if not self.processes.main:
            return None
        return MetricsLog(self.folder.path, progress.history, columns=self.columns, tensorboard=self.config.tensorboard)

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
            "changes": list(self.history),
            "initial_statistics": _buffers_digest(self.model),
            "data": _data_identity(self.training),
            "validation": _data_identity(self.validation),
            "preprocess": self.training.preprocess.to_dict(),
            **({"channels": _digest_of(initial.channels)} if initial.channels else {}),
            **({} if self.begun is None else {"initial_weights": weights_digest(self.model)}),
            **({} if self.lesson is None else self.lesson.identity),
        }

    def _epochs(self, trainer: T, progress: RunProgress, log: MetricsLog | None) -> None:
        if not self._stops(progress):
            self.training.fill_cache("reading training pictures", show=self.processes.main)
            self.validation.fill_cache("reading validation pictures", show=self.processes.main)
            self.processes.on_main(lambda: self.before(progress))
            name = architecture_of(self.model)["name"]
            with _Bar(f"{self.doing} {name}", self, trainer, progress) as bar:
                while not self._stops(progress):
                    row = self.epoch(trainer, progress.epoch, bar.step)
                    self._advance(progress, row)
                    self.processes.on_main(partial(self._keep, trainer, progress, log, row))
                    bar.epoch_done(row)
        self.processes.on_main(lambda: self.after(progress))

    def _advance(self, progress: RunProgress, row: Row) -> None:
        """Take an epoch into the account; of equal scores the lower loss is better."""
        progress.epoch = row["epoch"]
        progress.step = row["step"]
        progress.history.append(row)
        score, loss = row.get(self.score), row.get("val_loss")
        if _rank(score, loss) > _rank(progress.best_accuracy, progress.best_loss):
            progress.best_epoch = row["epoch"]
            progress.best_accuracy = score
            progress.best_loss = loss

    def _keep(self, trainer: T, progress: RunProgress, log: MetricsLog | None, row: Row) -> bytes:
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

    def _publish(self, trainer: T, progress: RunProgress) -> None:
        if self.processes.main:
            self._checkpoint(trainer.result, self.metrics(progress)).save(self.folder.path)

    def _checkpoint(self, model: nn.Module, metrics: dict[str, float | None]) -> Checkpoint:
        outputs = architecture_of(model)["arguments"]["num_classes"]
        known = (self.training.dataset.classes, () if self.begun is None else self.begun.classes)
        classes = next((names for names in known if len(names) == outputs), ())
        return Checkpoint.from_model(
            model,
            preprocess=self.training.preprocess,
            classes=classes,
            task=self.task,
            # more of the same is no other step
            changes=self.history if self.history[-1:] == (self.done,) else (*self.history, self.done),
            metrics=metrics,
        )

    def _finish(self, progress: RunProgress) -> bytes:
        self.folder.finish(
            {
                "epochs": progress.epoch,
                "best_epoch": progress.best_epoch,
                self.score: progress.best_accuracy,
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

    def __init__(self, description: str, run: Run[Any, Any, Any], trainer: BaseTrainer, progress: RunProgress) -> None:
        self.run = run
        self.epoch = progress.epoch + 1
        steps = (run.config.epochs - progress.epoch) * trainer.steps_per_epoch
        self._progress = Progress(description, steps) if run.processes.main else None
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
            self._progress.advance(steps, f"epoch {self.epoch}/{self.run.config.epochs}  {status}{self._validated}")

    def epoch_done(self, row: Row) -> None:
        """Show an epoch's validation beside the steps of the next one."""
        self.epoch += 1
        score = row.get(self.run.score)
        if score is not None:
            self._validated = f"  validated {score:.1%}"


def _rank(score: float | None, loss: float | None) -> tuple[float, float]:
    return (-1.0 if score is None else score, float("-inf") if loss is None else -loss)


def _data_identity(source: Source) -> dict[str, Any]:
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
