"""Precision search: which layers must stay in float to keep the accuracy, and what that costs on the engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

# latencies closer than this are the machine's noise: the plan with less in float is taken
_SAME_LATENCY = 0.02
# feasible plans that are timed against each other
_MOST_TIMED = 4


class SearchLayer(Protocol):
    """What the search must know of a layer; `edgevision_calibration.sensitivity.LayerSensitivity` has it."""

    @property
    def node(self) -> str:
        """Its name."""

    @property
    def sqnr_db(self) -> float:
        """Signal-to-noise ratio of the outputs with this layer alone quantized, dB."""

    @property
    def macs(self) -> int:
        """Its multiply-accumulates for one picture."""


class Measure(Protocol):
    """Measures plans; what it has measured once it knows without running again."""

    def drop(self, float_nodes: Collection[str]) -> float:
        """Loss against FP32 with these layers in float, in points (0..100)."""
        ...

    def latencies(self, plans: Sequence[frozenset[str]]) -> list[float | None]:
        """Milliseconds of each plan, timed side by side; None where the engine does not run here."""
        ...


class OutOfTimeError(Exception):
    """The time budget is spent; raised before a measurement begins."""


class Budget:
    """Wall-clock seconds that may be spent; None for no limit.

    Args:
        seconds: the limit.
        clock: seconds from some start.
    """

    def __init__(self, seconds: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds = seconds
        self._begun = clock()

    def check(self) -> None:
        """Raise `OutOfTimeError` where nothing is left."""
        if self.left() <= 0:
            raise OutOfTimeError

    def left(self) -> float:
        """Seconds that are left; infinite without a limit."""
        return float("inf") if self._seconds is None else self._seconds - (self._clock() - self._begun)


@dataclass
class SearchResult:
    """What the search found.

    Attributes:
        float_nodes: layers to leave in float, the most harmful first.
        drop: loss of that plan against FP32, points.
        int8_drop: loss with everything quantized, points.
        met: whether ``drop`` is within the limit.
        complete: whether the search ended by itself, not by its time budget.
        latency_ms: of the plan found; None where it could not be timed.
        int8_latency_ms: with everything quantized, timed beside it.
        fp32_latency_ms: of the plan that leaves every layer in float, timed beside it.
        cost_ms: layer → what leaving it in float costs, ms: the plan's latency less that with the layer quantized.
        tried: how many plans were measured.
    """

    float_nodes: list[str] = field(default_factory=list)
    drop: float = 0.0
    int8_drop: float = 0.0
    met: bool = True
    complete: bool = True
    latency_ms: float | None = None
    int8_latency_ms: float | None = None
    fp32_latency_ms: float | None = None
    cost_ms: dict[str, float] = field(default_factory=dict)
    tried: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        return asdict(self)

    def reasons(self, layers: Sequence[SearchLayer]) -> dict[str, str]:
        """Layer → why it stays in float: its sensitivity and its price."""
        by_name = {layer.node: layer for layer in layers}
        return {
            node: f"kept by the search: quantized alone it leaves {by_name[node].sqnr_db:.1f} dB"
            + (f"; costs {self.cost_ms[node]:+.3f} ms in float" if node in self.cost_ms else "")
            for node in self.float_nodes
        }


def search(layers: Sequence[SearchLayer], measure: Measure, *, max_drop: float) -> SearchResult:
    """Find the fastest plan whose loss is at most ``max_drop`` points.

    1. With everything quantized the loss may be small enough already.
    2. Else the most sensitive layers go to float, their number doubling until the loss is within the limit, then
       halving the interval.
    3. Each of them, the one with most arithmetic first, goes back to integers if the limit still holds.
    4. The plans within the limit that have least arithmetic in float are timed on the engine, beside all-int8 and
       all-float; the fastest is taken, and among equals the one with least in float.
    5. Each float layer's price is the difference to the plan with this layer quantized, timed side by side.

    The order of steps depends on the layers and on what is measured, never on the clock, so that a search whose
    measurements were kept repeats itself. When time runs out, the best plan so far is the answer.

    Source: the search by sensitivity of H. Wu et al., Integer Quantization for Deep Learning Inference, arXiv
    2004.09602, section 4.4 ("partial quantization"), with steps 3 to 5 added.

    Args:
        layers: quantizable layers, the most sensitive first.
        measure: measures losses and latencies; raises `OutOfTimeError` when no more may be measured.
        max_drop: limit, points.
    """
    state = _State({layer.node: layer.macs for layer in layers}, measure, max_drop)
    order = [layer.node for layer in layers]
    complete = True
    try:
        found = state.least_prefix(order)
        state.put_back(found)
    except OutOfTimeError:
        complete = False
    result = state.result(order)
    try:
        _choose_fastest(result, state, order)
        _price(result, state)
    except OutOfTimeError:
        complete = False
    result.complete = complete
    result.tried = len(state.drops)
    return result


class _State:
    """What is known so far."""

    def __init__(self, macs: Mapping[str, int], measure: Measure, max_drop: float) -> None:
        self.macs = macs
        self.measure = measure
        self.max_drop = max_drop
        self.drops: dict[frozenset[str], float] = {}

    def holds(self, nodes: Collection[str]) -> bool:
        """Whether the plan with these nodes in float is within the limit."""
        key = frozenset(nodes)
        if key not in self.drops:
            self.drops[key] = self.measure.drop(key)
        return self.drops[key] <= self.max_drop

    def cost(self, nodes: Collection[str]) -> tuple[int, int]:
        """What a plan leaves in float: arithmetic, then layers."""
        return sum(self.macs[node] for node in nodes), len(nodes)

    def least_prefix(self, order: Sequence[str]) -> list[str]:
        """The shortest beginning of ``order`` that holds, if holding is monotonic; all of it where none does."""
        if self.holds(()):
            return []
        fails, count = 0, 1
        while count < len(order) and not self.holds(order[:count]):
            fails, count = count, count * 2
        count = min(count, len(order))
        self.holds(order[:count])
        while count - fails > 1:
            middle = (fails + count) // 2
            if self.holds(order[:middle]):
                count = middle
            else:
                fails = middle
        return list(order[:count])

    def put_back(self, nodes: Sequence[str]) -> None:
        """Quantize again whatever the limit allows, the layers with most arithmetic first."""
        kept = list(nodes)
        if not self.holds(kept):
            return
        for node in sorted(nodes, key=lambda name: -self.macs[name]):
            fewer = [name for name in kept if name != node]
            if self.holds(fewer):
                kept = fewer

    def feasible(self) -> list[frozenset[str]]:
        """Measured plans within the limit, the one with least in float first."""
        plans = [nodes for nodes, drop in self.drops.items() if drop <= self.max_drop]
        return sorted(plans, key=lambda nodes: (*self.cost(nodes), sorted(nodes)))

    def result(self, order: Sequence[str]) -> SearchResult:
        """The plan with least in float that holds; where none does, the one that loses least."""
        plans = self.feasible()
        if plans:
            best = plans[0]
        else:
            best = min(self.drops, key=lambda nodes: (self.drops[nodes], *self.cost(nodes), sorted(nodes)))
        return SearchResult(
            float_nodes=[node for node in order if node in best],
            drop=self.drops[best],
            int8_drop=self.drops[frozenset()],
            met=bool(plans),
        )


def _choose_fastest(result: SearchResult, state: _State, order: Sequence[str]) -> None:
    """Time the candidates beside all-int8 and all-float; put the fastest into ``result``."""
    chosen = frozenset(result.float_nodes)
    plans = list(dict.fromkeys([chosen, *state.feasible()[:_MOST_TIMED], frozenset(), frozenset(order)]))
    times = dict(zip(plans, state.measure.latencies(plans), strict=True))
    result.int8_latency_ms, result.fp32_latency_ms = times[frozenset()], times[frozenset(order)]
    timed = {plan: value for plan, value in times.items() if value is not None and plan in state.feasible()}
    if timed:
        limit = min(timed.values()) * (1 + _SAME_LATENCY)
        fast = [plan for plan, value in timed.items() if value <= limit]
        chosen = min(fast, key=lambda plan: (*state.cost(plan), sorted(plan)))
        result.float_nodes = [node for node in order if node in chosen]
        result.drop = state.drops[chosen]
    result.latency_ms = times[chosen]


def _price(result: SearchResult, state: _State) -> None:
    """What each float layer costs, timed side by side with the plan itself."""
    if not result.float_nodes or result.latency_ms is None:
        return
    chosen = frozenset(result.float_nodes)
    own, *others = state.measure.latencies([chosen, *(chosen - {node} for node in result.float_nodes)])
    for node, other in zip(result.float_nodes, others, strict=True):
        if own is None or other is None:
            raise OutOfTimeError
        result.cost_ms[node] = own - other
