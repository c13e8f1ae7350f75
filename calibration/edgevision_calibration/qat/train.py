"""Quantization-aware training: the plan's own integers, self-distillation from the graph in float.

Sources: learned steps, Esser et al., LSQ, arXiv 1902.08153; distillation, Hinton et al., arXiv 1503.02531, with the
float network itself as the teacher, so that pictures need no labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
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
from edgevision_calibration.plan import QuantPlan
from edgevision_calibration.torch_graph import FakeQuantGraph, TorchGraph

Batch = npt.NDArray[np.float32]


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
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} must be {least} or more; got {getattr(self, name)}")
        for name in ("lr", "step_lr", "warmup", "grad_clip"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UsageError(f"{name} must be 0 or more; got {value}")
        if self.lr == 0 and self.step_lr == 0:
            raise UsageError("with lr and step_lr both 0 nothing would be learned")
        if self.warmup >= 1:
            raise UsageError(f"warmup is a share of the run, below 1; got {self.warmup}")

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
        epoch: epoch (from 0) → its batches, float32 ``[B, C, H, W]``, the same on every call.
        steps: batches in an epoch.
        validation: → batches that are not trained on.
    """

    epoch: Callable[[int], Iterable[Batch]]
    steps: int
    validation: Callable[[], Iterable[Batch]]


@dataclass(frozen=True)
class QatResult:
    """What training gave.

    Attributes:
        graph: with weights on their grid.
        plan: with learned steps.
        metrics: ``agreement`` (share of equal answers, classification alone), ``sqnr_db`` and ``loss`` against the
            float network on the validation pictures, and the same ``before`` training.
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

    Raises:
        TrainingError: the loss became NaN, or the state cannot be used.
        UnsupportedOpError: an op without gradients.
    """
    run = _Run(graph, plan, data, config, classification)
    progress = run.restore(state) if state is not None and state.exists() else run.begin()
    with torch.random.fork_rng(devices=[]), Progress("qat", config.epochs * data.steps) as bar:
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

    def begin(self) -> RunProgress:
        row = self.validate()
        self.best = self._parameters()
        return RunProgress(best_loss=row["loss"], history=[{"epoch": 0.0, **row}])

    def _parameters(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.student.state_dict().items()}

    def train_epoch(self, progress: RunProgress, bar: Progress) -> None:
        total = self.config.epochs * self.data.steps
        losses = []
        for batch in self.data.epoch(progress.epoch):
            for group, rate in zip(self.optimizer.param_groups, self.base, strict=True):
                group["lr"] = rate * self.config.rate_at(progress.step, total)
            losses.append(self._step(torch.from_numpy(batch)))
            progress.step += 1
            bar.advance(status=f"loss {losses[-1]:.3g}")
        progress.epoch += 1
        row = self.validate()
        progress.history.append({"epoch": float(progress.epoch), "train_loss": float(np.mean(losses)), **row})
        if progress.best_loss is None or row["loss"] < progress.best_loss:
            progress.best_epoch, progress.best_loss = progress.epoch, row["loss"]
            self.best = self._parameters()

    def _step(self, images: Tensor) -> float:
        with torch.no_grad():
            expected = self.teacher(images)
        loss = self._loss(self.student(images), expected)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError("the loss became NaN or infinite; use a smaller lr or a grad_clip of 1")
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if self.config.grad_clip:
            torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.config.grad_clip)
        self.optimizer.step()
        return value

    def _loss(self, got: dict[str, Tensor], expected: dict[str, Tensor]) -> Tensor:
        """KL divergence of answers, or squared error in units of each output's power."""
        if self.classification:
            name = self.student.graph.output_names[0]
            student, teacher = got[name].flatten(1), expected[name].flatten(1)
            log_teacher = torch.log_softmax(teacher, 1)
            return F.kl_div(torch.log_softmax(student, 1), log_teacher, reduction="batchmean", log_target=True)
        errors = [
            (got[name] - value).square().mean() / value.square().mean().clamp(min=1e-12)
            for name, value in expected.items()
        ]
        return torch.stack(errors).mean()

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss, SQNR in dB and, for classification, the share of answers kept."""
        losses, noise, power, same, count = [], 0.0, 0.0, 0, 0
        for batch in self.data.validation():
            images = torch.from_numpy(batch)
            got, expected = self.student(images), self.teacher(images)
            losses.append(float(self._loss(got, expected)) * len(batch))
            for name, value in expected.items():
                noise += float((got[name] - value).double().square().sum())
                power += float(value.double().square().sum())
            first = self.student.graph.output_names[0]
            same += int((got[first].flatten(1).argmax(1) == expected[first].flatten(1).argmax(1)).sum())
            count += len(batch)
        if count == 0:
            raise TrainingError("there are no validation pictures")
        row = {"loss": sum(losses) / count, "sqnr_db": 10.0 * math.log10(max(power, 1e-300) / max(noise, 1e-300))}
        return {**row, "agreement": same / count} if self.classification else row

    def capture(self, progress: RunProgress) -> TrainingState:
        return TrainingState(progress, self._parameters(), self.best, capture_optimizer(self.optimizer), {})

    def restore(self, path: Path) -> RunProgress:
        state = TrainingState.from_bytes(path.read_bytes(), str(path))
        try:
            self.student.load_state_dict(state.model)
        except RuntimeError as error:
            raise TrainingError(f"{path} belongs to another network: {error}; remove it to start over") from error
        restore_optimizer(self.optimizer, state.optimizer)
        self.best = state.average
        return state.progress

    def result(self, progress: RunProgress) -> QatResult:
        self.student.load_state_dict(self.best)
        graph, plan = self.student.learned()
        kept = next(row for row in progress.history if row["epoch"] == progress.best_epoch)
        before = progress.history[0]
        metrics: dict[str, float] = {name: kept[name] for name in ("loss", "sqnr_db", "agreement") if name in kept}
        metrics |= {f"before_{name}": before[name] for name in metrics}
        metrics["epoch"] = float(progress.best_epoch)
        calibration = {**plan.calibration, "method": "qat", "qat": dict(vars(self.config))}
        return QatResult(graph, replace(plan, calibration=calibration), metrics, list(progress.history))
