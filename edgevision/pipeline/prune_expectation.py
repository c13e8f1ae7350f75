"""What pruning will give, told before it begins: multiply-adds, parameters, and latency as measured on an engine."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevision.errors import EdgeVisionError
from edgevision.runtime.session import load

if TYPE_CHECKING:
    from torch import nn

    from edgevision.checkpoint import Checkpoint
    from edgevision.pruning.prune import PruningPlan

# networks in turns: what else the machine does falls on all of them
_ROUNDS = 3
_SECONDS = 0.3


@dataclass(frozen=True)
class Expectation:
    """Before and after. Weights do not decide how fast a network is, so the untrained pruned one is timed.

    Attributes:
        macs: multiply-adds of one picture, branches fused: before and after.
        parameters: likewise.
        latency_ms: of one picture on one thread: before and after; None where it was not measured.
        target: the engine that was asked for.
        not_measured: why the latency was not measured; empty where it was.
        groups: name → channels before and after, of all that can be pruned.
        kept: layer → why its channels stay.
    """

    macs: tuple[int, int]
    parameters: tuple[int, int]
    latency_ms: tuple[float, float] | None
    target: str | None
    not_measured: str
    groups: dict[str, tuple[int, int]]
    kept: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        return asdict(self)


def expect(source: Checkpoint, model: nn.Module, plan: PruningPlan, target: str | None) -> Expectation:
    """What a plan will give; nothing that `target` cannot do stops it, the reason is told instead."""
    smaller = plan.apply(model)
    before, after = costs_of(model), costs_of(smaller)
    latency, reason = None, "no engine was named"
    if target is not None:
        try:
            measured = measure_latency([with_network(source, model), with_network(source, smaller)], target)
            latency, reason = (measured[0], measured[1]), ""
        except EdgeVisionError as error:
            reason = str(error)
    return Expectation(
        (before[0], after[0]),
        (before[1], after[1]),
        latency,
        target,
        reason,
        {group.name: (group.channels, plan.counts.get(group.name, group.channels)) for group in plan.groups},
        {layer: kept.reason for kept in plan.groups.kept for layer in kept.layers},
    )


def costs_of(model: nn.Module) -> tuple[int, int]:
    """Multiply-adds of one picture and parameters of a zoo network with its branches fused."""
    from edgevision.models.reparameterize import reparameterize
    from edgevision.models.statistics import count_multiply_adds, count_parameters
    from edgevision.pruning.prune import input_shape_of

    fused = reparameterize(model)
    return count_multiply_adds(fused, input_shape_of(model)), count_parameters(fused)


def measure_latency(checkpoints: Sequence[Checkpoint], target: str, *, rounds: int = _ROUNDS) -> list[float]:
    """Milliseconds of one picture on one thread, FP32, each network converted for ``target`` and run in turns.

    The least of the rounds' medians: on a shared machine the figure that others disturbed least.

    Raises:
        EdgeVisionError: a network cannot be converted, or the engine is not installed or does not run here.
    """
    import numpy as np

    from edgevision.pipeline.convert import convert
    from edgevision_benchmarks.timing import TimingOptions, combine, measure

    timing = TimingOptions(min_runs=20, min_seconds=_SECONDS, max_seconds=4.0, max_warmup_seconds=1.0)
    with tempfile.TemporaryDirectory(prefix="edgevision-") as folder:
        sessions = []
        try:
            for number, checkpoint in enumerate(checkpoints):
                (bundle,) = convert(checkpoint, targets=[target], out=Path(folder) / str(number), name="net")
                sessions.append(load(bundle, threads=1))
            batches = [np.zeros([size or 1 for size in session.inputs[0].shape], np.float32) for session in sessions]
            samples: list[list[Any]] = [[] for _ in sessions]
            for _ in range(rounds):
                for session, batch, found in zip(sessions, batches, samples, strict=True):
                    found.append(measure(partial(session.run, batch), timing))
        finally:
            for session in sessions:
                session.close()
    return [min(combine(found).round_p50_ms) for found in samples]


def with_network(like: Checkpoint, model: nn.Module, **others: Any) -> Checkpoint:
    """A network with what else its Checkpoint says of it: preprocess, classes and task, and ``others`` besides."""
    from edgevision.checkpoint import Checkpoint

    return Checkpoint.from_model(model, preprocess=like.preprocess, classes=like.classes, task=like.task, **others)
