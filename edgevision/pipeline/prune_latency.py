"""`LatencyPlanner`: which channels go so that a network is faster on an engine, and the measurement that proves it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevision.dependencies import require
from edgevision.errors import CheckFailedError, UsageError
from edgevision.files import write_json
from edgevision.pipeline.layer_timing import cached_table_path, device_name, empty_table, measure_table
from edgevision.pipeline.prune_expectation import measure_latency, with_network
from edgevision.pipeline.workspace import Workspace, digest_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import nn

    from edgevision.checkpoint import Checkpoint
    from edgevision.pruning.groups import ChannelGroups
    from edgevision.pruning.importance import ScoringData
    from edgevision.pruning.latency import LatencyModel
    from edgevision.pruning.latency_table import LatencyTable
    from edgevision.pruning.macs import CostModel
    from edgevision.pruning.prune import PruningPlan

REPORT = "latency.json"

# selections that are tried; each is measured
ROUNDS = 3

# interleaved rounds of timing the two networks: more than for an announcement, since they decide
_TIMING_ROUNDS = 7

# a network that takes less than this share of what was asked for has lost channels for nothing; corrections aim at the
# middle, so that the noise of the next measurement does not miss it again
_TOO_FAST = 0.94

# savings that were measured are believed to be at least this share of those predicted: the next cut is no panic
_LEAST_FACTOR = 0.3


@dataclass(frozen=True)
class LatencyRound:
    """One selection and what it gave.

    Attributes:
        aim: ratio of predicted latencies that was asked of the selection.
        predicted: ratio that the table promises.
        measured_ms: of the whole network, before and after, in one run; None with another device's table.
        counts: group → channels that stay.
    """

    aim: float
    predicted: float
    measured_ms: tuple[float, float] | None
    counts: dict[str, int]

    @property
    def measured(self) -> float | None:
        """Ratio of the measured latencies."""
        return None if self.measured_ms is None else self.measured_ms[1] / self.measured_ms[0]

    @property
    def ratio(self) -> float:
        """What decides: the measurement, where there is one."""
        return self.predicted if self.measured is None else self.measured


class LatencyPlanner:
    """Plans a pruning step by measured latency; a planner for `edgevision.pipeline.prune.prune_checkpoint`.

    Channels go in blocks by the importance lost for each predicted millisecond, until the sum of the layers' times is
    the wanted fraction (see `edgevision.pruning.latency`). The pruned network is then converted and timed against the
    unpruned one in turns. Where its saving is not what was predicted, the prediction is corrected by the factor between
    the two and the selection made again, at most `ROUNDS` times.

    Args:
        source: the network.
        out: folder of the run: ``latency.json`` is left there.
        ratio: fraction of the latency to keep, above 0 and below 1.
        target: the engine.
        table: a latency table's file, measured on this device or another; None measures on this machine, and keeps
            the times for the next run.
        importance: see `edgevision.pruning.prune.prune`.
        scope: ``measured`` or ``global``; None as there.
        round_to: channels stay multiples of this.
        restart: forget what an earlier run decided.

    Raises:
        UsageError: the table cannot be read, or is another engine's.
    """

    def __init__(
        self,
        source: Checkpoint,
        out: str | Path,
        *,
        ratio: float,
        target: str,
        table: str | Path | None = None,
        importance: str | None = None,
        scope: str | None = None,
        round_to: int = 8,
        restart: bool = False,
    ) -> None:
        require("torch", purpose="prune")
        require("torch_pruning", purpose="prune")
        from edgevision.pruning.latency_table import LatencyTable

        if scope == "uniform":
            raise UsageError("latency decides group by group: choose --scope measured or global, or prune by --macs")
        self.source, self.out, self.ratio, self.target = source, Path(out), ratio, target
        self.importance, self.scope, self.round_to, self.restart = importance, scope, round_to, restart
        self.given = None if table is None else LatencyTable.open(table)
        if self.given is not None and self.given.target != target:
            raise UsageError(f"{table} was measured on {self.given.target}, not on {target}: give --target to match")
        self._plans: dict[str, PruningPlan] = {}

    @property
    def elsewhere(self) -> bool:
        """Whether the table is another device's, so that nothing can be proved here."""
        return self.given is not None and self.given.device != device_name(self.target)

    @property
    def identity(self) -> dict[str, Any]:
        """Plain values that tell this planner from another."""
        table = None if self.given is None else digest_of(self.given.identity, self.given.layers)
        return {
            "latency": self.ratio, "target": self.target, "table": table, "importance": self.importance,
            "scope": self.scope, "round_to": self.round_to,
        }  # fmt: skip

    def __call__(self, model: nn.Module, share: float, data: ScoringData) -> PruningPlan:
        """The plan for ``model``; ``share`` is not looked at, the ratio of the latency decides.

        Raises:
            CheckFailedError: the network did not become as fast by measurement; ``latency.json`` holds what was found.
            UsageError: the table lacks layers of this network, or its scope cannot be had.
            EdgeVisionError: a network cannot be converted, or the engine is not installed or does not run here.
        """
        from edgevision.distillation.teacher import weights_digest

        key = digest_of(self.identity, weights_digest(model), data.seed)
        if key not in self._plans:
            self._plans[key] = self._plan(model, data, Workspace(self.out).root / "latency" / f"{key}.json")
        return self._plans[key]

    def _plan(self, model: nn.Module, data: ScoringData, decided: Path) -> PruningPlan:
        from edgevision.pruning import CostModel, choose_channels, find_groups, score_groups
        from edgevision.pruning.prune import PruningPlan, input_shape_of

        groups = find_groups(model, input_shape_of(model))
        costs = CostModel.of(model, groups)
        scores = score_groups(model, groups, self.importance or ("taylor" if data.batches else "l2"), data)

        def plan(counts: dict[str, int]) -> PruningPlan:
            return PruningPlan(groups, counts, choose_channels(scores, counts), costs)

        if not self.restart and (counts := _decided(decided, groups)) is not None:
            return plan(counts)
        table = self._table(costs)
        choice = _Choice(self, model, groups, scores, costs, table, data)
        rounds: list[LatencyRound] = []
        best: LatencyRound | None = None
        report: dict[str, Any] = {}
        for found in choice.rounds(plan):
            rounds.append(found)
            best = best_round(rounds, self.ratio)
            report = self._report(rounds, best, table, choice.cost)
            # after every round: an interrupted run, too, leaves what it found
            write_json(self.out / REPORT, report)
        if best is None:
            raise self._failed(rounds)
        write_json(decided, report)
        return plan(best.counts)

    def _table(self, costs: CostModel) -> LatencyTable:
        from edgevision.pruning.latency_table import points_of

        if self.given is not None:
            return self.given
        path = cached_table_path(empty_table(self.target))
        return measure_table(points_of(costs.layers), path, target=self.target)

    def measured(self, model: nn.Module, plan: PruningPlan) -> tuple[float, float] | None:
        """Milliseconds of the whole network before and after a plan; None where its device is not this one."""
        if self.elsewhere:
            return None
        pair = [with_network(self.source, one) for one in (model, plan.apply(model))]
        before, after = measure_latency(pair, self.target, rounds=_TIMING_ROUNDS)
        return before, after

    def _report(
        self, rounds: Sequence[LatencyRound], best: LatencyRound | None, table: LatencyTable, cost: LatencyModel
    ) -> dict[str, Any]:
        return {
            "asked": self.ratio,
            "met": best is not None,
            "by": "prediction" if self.elsewhere else "measurement",
            "table": table.identity,
            "layers_not_in_the_table": cost.not_measured,
            "rounds": [{**asdict(found), "measured": found.measured} for found in rounds],
            "counts": None if best is None else best.counts,
        }

    def _failed(self, rounds: Sequence[LatencyRound]) -> CheckFailedError:
        best = min(rounds, key=lambda found: found.ratio)
        if best.measured_ms is None:
            told = f"{best.predicted:.1%} of the latency by the table's prediction"
        else:
            before, after = best.measured_ms
            told = (
                f"{after:.3f} ms of {before:.3f} ms by measurement, {best.ratio:.1%} (predicted {best.predicted:.1%})"
            )
        return CheckFailedError(
            f"asked for {self.ratio:.1%} of the latency on {self.target}; the fastest of {len(rounds)} selections "
            f"takes {told}. Nothing was trained; {self.out / REPORT} holds what was found. Give a larger ratio, or a "
            "smaller --round-to"
        )


@dataclass
class _Choice:
    """The selections of one network, each corrected by the measurement of the one before."""

    planner: LatencyPlanner
    model: nn.Module
    groups: ChannelGroups
    scores: Mapping[str, npt.NDArray[np.float64]]
    costs: CostModel
    table: LatencyTable
    data: ScoringData

    def __post_init__(self) -> None:
        from edgevision.pruning.latency import LatencyModel

        self.cost = LatencyModel(self.table, self.costs)

    def rounds(self, plan: Callable[[dict[str, int]], PruningPlan]) -> Iterator[LatencyRound]:
        """Yield `LatencyRound`\\ s until one is fast enough and not needlessly fast, or nothing new can be tried."""
        from edgevision.pruning.planning import MOST, plan_counts
        from edgevision.pruning.rounding import legal_counts

        planner, multiple = self.planner, self.planner.round_to
        least = {
            group.name: next(n for n in legal_counts(group, multiple) if n >= group.channels * (1 - MOST))
            for group in self.groups
        }
        whole = self.cost()
        floor = self.cost(least) / whole
        scope, curves = self._curves(multiple, MOST)
        aim = planner.ratio
        tried: list[dict[str, int]] = []
        for _ in range(ROUNDS):
            counts = plan_counts(
                self.groups, self.scores, self.cost, target=max(aim, floor) * whole * (1 + 1e-9), scope=scope,
                multiple=multiple, most=MOST, curves=curves,
            )  # fmt: skip
            if counts in tried:
                return
            tried.append(counts)
            measured = planner.measured(self.model, plan(counts))
            found = LatencyRound(aim, self.cost(counts) / whole, measured, counts)
            yield found
            if found.measured is None or planner.ratio * _TOO_FAST <= found.measured <= planner.ratio:
                return
            aim = corrected(planner.ratio * (1 + _TOO_FAST) / 2, found.predicted, found.measured)

    def _curves(self, multiple: int, most: float) -> tuple[str, Any]:
        from edgevision.pruning.loss_curves import loss_curves

        scope = self.planner.scope or ("measured" if self.data.batches else "global")
        if scope != "measured":
            return scope, None
        return scope, loss_curves(
            self.model, self.groups, self.scores, self.data, multiple=multiple, most=most,
            macs=self.costs.macs(),
        )  # fmt: skip


def corrected(ratio: float, predicted: float, measured: float) -> float:
    """What to ask of the prediction so that ``ratio`` is measured, given that ``predicted`` gave ``measured``.

    The savings are set in proportion, not the latencies: what channels do not change (the call itself, operations
    between the layers) is in the measurement and not in the table.
    """
    if predicted >= 1:
        return ratio
    factor = max((1 - measured) / (1 - predicted), _LEAST_FACTOR)
    return 1 - (1 - ratio) / factor


def best_round(rounds: Sequence[LatencyRound], ratio: float) -> LatencyRound | None:
    """Of the selections that are fast enough the one that removes least; None where none is."""
    # a network at its floor predicts exactly what was asked for, up to rounding
    met = [found for found in rounds if found.ratio <= ratio or math.isclose(found.ratio, ratio, rel_tol=1e-6)]
    return max(met, key=lambda found: found.predicted, default=None)


def _decided(path: Path, groups: ChannelGroups) -> dict[str, int] | None:
    """Counts that an earlier run of the same settings decided on; None where there are none or they do not fit."""
    try:
        counts = {str(name): int(count) for name, count in json.loads(path.read_bytes())["counts"].items()}
        groups.check_counts(counts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # a UsageError is a ValueError
        return None
    return counts if counts.keys() == groups.counts().keys() else None
