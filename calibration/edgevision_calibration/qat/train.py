"""Quantization-aware training: the plan's own integers, self-distillation from the graph in float.

What is trained is the graph that is deployed: branches fused and batch norms folded with the statistics of the float
training before the first step, so there is no statistic left to freeze and nothing to fold afterwards. Layers that the
plan leaves in float keep their weights and are computed in float here as on the engine.

Sources: learned steps, Esser et al., LSQ, arXiv 1902.08153; distillation, Hinton et al., arXiv 1503.02531, with the
float network itself as the teacher, so that pictures need no labels, and with labels the mixture of its section 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from edgevision.errors import TrainingError, UsageError
from edgevision.graph import Graph
from edgevision.progress import Progress
from edgevision.training.checkpointing import RunProgress, TrainingState, capture_optimizer, restore_optimizer
from edgevision.training.ema import decay_at
from edgevision_calibration.plan import QuantPlan
from edgevision_calibration.torch_graph import FakeQuantGraph, TorchGraph

Batch = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
# pictures [B, C, H, W] and, where they are known, their classes [B]
LabelledBatch = tuple[Batch, Labels | None]


@dataclass(frozen=True)
class QatConfig:
    """Settings of quantization-aware training.

    Attributes:
        epochs: passes over the pictures.
        batch_size: pictures per step.
        lr: of weights and biases, in units of their quantization steps (Adam).
        step_lr: of quantization steps, relative to them; 0 keeps the observed ranges.
        warmup: share of the run in which rates rise linearly; then they fall to zero along a cosine.
        grad_clip: largest 2-norm of all gradients together; 0 turns clipping off.
        ema_decay: decay of the exponential moving average of what is learned; 0 turns it off. With it on, the average
            is what is validated and kept.
        label_weight: share of the labels' cross-entropy in the loss, 0 to 1; the float network's answers have the
            rest. Classification alone.
        seed: of the order of pictures and of augmentation.

    Raises:
        UsageError: a value outside its range.
    """

    epochs: int = 10
    batch_size: int = 32
    lr: float = 0.01
    step_lr: float = 1e-4
    warmup: float = 0.1
    grad_clip: float = 0.0
    ema_decay: float = 0.0
    label_weight: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} must be {least} or more; got {getattr(self, name)}")
        for name in ("lr", "step_lr", "warmup", "grad_clip", "ema_decay", "label_weight"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UsageError(f"{name} must be 0 or more; got {value}")
        if self.lr == 0 and self.step_lr == 0:
            raise UsageError("with lr and step_lr both 0 nothing would be learned")
        for name in ("warmup", "ema_decay"):
            if getattr(self, name) >= 1:
                raise UsageError(f"{name} must be below 1; got {getattr(self, name)}")
        if self.label_weight > 1:
            raise UsageError(f"label_weight is a share, at most 1; got {self.label_weight}")

    def rate_at(self, step: int, steps: int) -> float:
        """Factor of the learning rates at ``step`` of ``steps``."""
        rising = max(1, round(self.warmup * steps))
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1.0 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


@dataclass(frozen=True)
class QatData:
    """Where pictures come from.

    Attributes:
        epoch: epoch (from 0) → its batches, the same on every call: float32 ``[B, C, H, W]`` with int64 ``[B]``
            class indices, or None where they are not known.
        steps: batches in an epoch.
        validation: → batches that are not trained on, the same on every call.
    """

    epoch: Callable[[int], Iterable[LabelledBatch]]
    steps: int
    validation: Callable[[], Iterable[LabelledBatch]]


@dataclass(frozen=True)
class QatResult:
    """What training gave.

    Attributes:
        graph: with weights on their grid.
        plan: with learned steps.
        metrics: ``agreement`` (share of equal answers, classification alone), ``sqnr_db`` and ``loss`` against the
            float network on the validation pictures, with labels also ``top1``, and the same ``before`` training;
            ``float_top1`` is the float network's own.
        history: one row per epoch, epoch 0 being the network before training.
    """

    graph: Graph
    plan: QuantPlan
    metrics: dict[str, float]
    history: list[dict[str, float]] = field(default_factory=list)


def train_quantized(
    graph: Graph,
    plan: QuantPlan,
    data: QatData,
    *,
    config: QatConfig,
    classification: bool,
    state: Path | None = None,
    label: str = "qat",
) -> QatResult:
    """Fine-tune a quantized graph to answer as it does in float.

    The weights are those of the graph, batch norms folded and branches fused, so that what is trained is what is
    deployed. The network with the least validation loss is kept, the one before training included.

    Args:
        graph: the treated canonical graph.
        plan: where training begins; its scheme is what is trained for.
        data: pictures.
        config: settings.
        classification: whether the first output holds logits (KL divergence) rather than values (squared error).
        state: file to resume from and to keep the state of every epoch in.
        label: what the progress bar says.

    Raises:
        UsageError: a label weight without labels, or for something else than classification.
        TrainingError: the loss became NaN, or the state cannot be used.
        UnsupportedOpError: an op without gradients.
    """
    if config.label_weight and not classification:
        raise UsageError("label_weight is for classification; other tasks learn from the float network: leave it 0")
    run = _Run(graph, plan, data, config, classification)
    progress = run.restore(state) if state is not None and state.exists() else run.begin()
    with torch.random.fork_rng(devices=[]), Progress(label, config.epochs * data.steps) as bar:
        bar.advance(progress.step)
        while progress.epoch < config.epochs:
            run.train_epoch(progress, bar)
            if state is not None:
                run.capture(progress).save(state)
    return run.result(progress)


class _Run:
    """Student, teacher and optimizer of one training."""

    def __init__(self, graph: Graph, plan: QuantPlan, data: QatData, config: QatConfig, classification: bool) -> None:
        learn = set()
        if config.lr > 0:
            learn.add("weights")
        if config.step_lr > 0:
            learn |= {"weight_steps", "activation_steps"}
        self.student = FakeQuantGraph(graph, plan, learn=frozenset(learn))
        self.teacher = TorchGraph(graph)
        self.data, self.config, self.classification = data, config, classification
        weights = [*self.student.weight_changes, *self.student.bias_changes]
        steps = [*self.student.step_changes, *self.student.weight_step_changes]
        self.base = [config.lr, config.step_lr]
        self.optimizer = torch.optim.Adam([{"params": weights}, {"params": steps}], lr=0.0)
        self.best: dict[str, Tensor] = {}
        # only with ema_decay
        self.average = self._parameters() if config.ema_decay else {}
        self._answers: list[dict[str, Tensor]] = []

    def begin(self) -> RunProgress:
        row = self.validate()
        self.best = self._parameters()
        return RunProgress(best_loss=row["loss"], history=[{"epoch": 0.0, **row}])

    def _parameters(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.student.state_dict().items()}

    def train_epoch(self, progress: RunProgress, bar: Progress) -> None:
        total = self.config.epochs * self.data.steps
        losses = []
        for images, labels in self.data.epoch(progress.epoch):
            for group, rate in zip(self.optimizer.param_groups, self.base, strict=True):
                group["lr"] = rate * self.config.rate_at(progress.step, total)
            losses.append(self._step(torch.from_numpy(images), labels))
            self._take_average(progress.step)
            progress.step += 1
            bar.advance(status=f"loss {losses[-1]:.3g}")
        progress.epoch += 1
        with self._averaged():
            row = self.validate()
            progress.history.append({"epoch": float(progress.epoch), "train_loss": float(np.mean(losses)), **row})
            if progress.best_loss is None or row["loss"] < progress.best_loss:
                progress.best_epoch, progress.best_loss = progress.epoch, row["loss"]
                self.best = self._parameters()

    def _step(self, images: Tensor, labels: Labels | None) -> float:
        with torch.no_grad():
            expected = self.teacher(images)
        loss = self._loss(self.student(images), expected, labels)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError("the loss became NaN or infinite; use a smaller lr or a grad_clip of 1")
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if self.config.grad_clip:
            torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.config.grad_clip)
        self.optimizer.step()
        return value

    @torch.no_grad()
    def _take_average(self, step: int) -> None:
        """Take in what is learned after the step with this number (from 0)."""
        if not self.average:
            return
        keep = decay_at(self.config.ema_decay, step)
        for name, value in self.student.state_dict().items():
            self.average[name].lerp_(value, 1.0 - keep)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The student as its average, where there is one."""
        if not self.average:
            yield
            return
        held = self._parameters()
        self.student.load_state_dict(self.average)
        try:
            yield
        finally:
            self.student.load_state_dict(held)

    def _loss(self, got: dict[str, Tensor], expected: dict[str, Tensor], labels: Labels | None) -> Tensor:
        """KL divergence of answers, mixed with the labels' cross-entropy; or squared error in each output's power."""
        if not self.classification:
            errors = [
                (got[name] - value).square().mean() / value.square().mean().clamp(min=1e-12)
                for name, value in expected.items()
            ]
            return torch.stack(errors).mean()
        student, teacher = self._logits(got), self._logits(expected)
        log_teacher = torch.log_softmax(teacher, 1)
        answers = F.kl_div(torch.log_softmax(student, 1), log_teacher, reduction="batchmean", log_target=True)
        share = self.config.label_weight
        if not share:
            return answers
        if labels is None:
            raise UsageError(f"a label_weight of {share:g} needs labels of all pictures, those to validate on included")
        return (1.0 - share) * answers + share * F.cross_entropy(student, torch.from_numpy(labels))

    def _logits(self, outputs: dict[str, Tensor]) -> Tensor:
        return outputs[self.student.graph.output_names[0]].flatten(1)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss, SQNR in dB and, for classification, the share of answers kept and, with labels, of right ones."""
        loss, noise, power, count, labelled = 0.0, 0.0, 0.0, 0, 0
        same, right, float_right = 0, 0, 0
        for number, (batch, labels) in enumerate(self.data.validation()):
            images = torch.from_numpy(batch)
            got, expected = self.student(images), self._expected(number, images)
            loss += float(self._loss(got, expected, labels)) * len(batch)
            count += len(batch)
            for name, value in expected.items():
                noise += float((got[name] - value).double().square().sum())
                power += float(value.double().square().sum())
            if not self.classification:
                continue
            answers, answers_in_float = self._logits(got).argmax(1), self._logits(expected).argmax(1)
            same += int((answers == answers_in_float).sum())
            if labels is not None:
                classes = torch.from_numpy(labels)
                right += int((answers == classes).sum())
                float_right += int((answers_in_float == classes).sum())
                labelled += len(batch)
        if count == 0:
            raise TrainingError("there are no validation pictures")
        row = {"loss": loss / count, "sqnr_db": 10.0 * math.log10(max(power, 1e-300) / max(noise, 1e-300))}
        if self.classification:
            row["agreement"] = same / count
        if labelled == count and self.classification:
            row |= {"top1": right / count, "float_top1": float_right / count}
        return row

    def _expected(self, number: int, images: Tensor) -> dict[str, Tensor]:
        """The teacher's outputs for a validation batch; logits are small and kept for the next epoch."""
        if not self.classification:
            return dict(self.teacher(images))
        if number == len(self._answers):
            self._answers.append(self.teacher(images))
        return self._answers[number]

    def capture(self, progress: RunProgress) -> TrainingState:
        others = {f"best/{name}": value for name, value in self.best.items()}
        others |= {f"mean/{name}": value for name, value in self.average.items()}
        return TrainingState(progress, self._parameters(), others, capture_optimizer(self.optimizer), {})

    def restore(self, path: Path) -> RunProgress:
        state = TrainingState.from_bytes(path.read_bytes(), str(path))
        try:
            self.student.load_state_dict(state.model)
            self.best = {name: state.average[f"best/{name}"] for name in state.model}
            self.average = {name: state.average[f"mean/{name}"] for name in self.average}
        except (RuntimeError, KeyError) as error:
            raise TrainingError(f"{path} belongs to another network: {error}; remove it to start over") from error
        restore_optimizer(self.optimizer, state.optimizer)
        return state.progress

    def result(self, progress: RunProgress) -> QatResult:
        self.student.load_state_dict(self.best)
        graph, plan = self.student.learned()
        kept = next(row for row in progress.history if row["epoch"] == progress.best_epoch)
        before = progress.history[0]
        names = [name for name in ("loss", "sqnr_db", "agreement", "top1") if name in kept]
        metrics: dict[str, float] = {name: kept[name] for name in names}
        metrics |= {f"before_{name}": before[name] for name in names}
        if "float_top1" in kept:
            metrics["float_top1"] = kept["float_top1"]
        metrics["epoch"] = float(progress.best_epoch)
        calibration = {**plan.calibration, "method": "qat", "qat": dict(vars(self.config))}
        return QatResult(graph, replace(plan, calibration=calibration), metrics, list(progress.history))
