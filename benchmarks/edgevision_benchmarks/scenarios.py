"""MLPerf's scenarios beside SingleStream: Offline (throughput) and Server (Poisson arrivals under a latency bound).

V. J. Reddi et al., MLPerf Inference Benchmark, ISCA 2020 (arXiv 1911.02549), section III-C. SingleStream, one query in
flight, is `edgevision_benchmarks.timing.measure` itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevision.errors import UsageError
from edgevision_benchmarks.statistics import TAILS, allowed_over, least_queries
from edgevision_benchmarks.timing import TimingOptions, measure

SCENARIOS = ("offline", "server")

Clock = Callable[[], int]


def offline(
    function: Callable[[], object], batch: int, options: TimingOptions, *, clock: Clock = time.perf_counter_ns
) -> dict[str, Any]:
    """Throughput of one round: all samples are there from the start and go through in batches.

    Args:
        function: runs one batch.
        batch: samples in it.
        options: limits of the round.
        clock: in nanoseconds.

    Returns:
        ``samples_per_second``, ``samples``, ``seconds``, ``batch``.
    """
    found = measure(function, options, clock=clock)
    seconds = sum(found.wall_ns) / 1e9
    samples = batch * len(found.wall_ns)
    rate = samples / seconds if seconds > 0 else None
    return {"samples_per_second": rate, "samples": samples, "seconds": seconds, "batch": batch}


@dataclass(frozen=True)
class ServerOptions:
    """How the greatest rate is looked for.

    Attributes:
        bound_ms: what the percentile of the latency must not exceed; a query's latency runs from the moment it was to
            arrive, so that waiting behind others counts.
        percentile: ``p90``, ``p95`` or ``p99``.
        seed: of the arrivals; every rate sees the same ones, stretched.
        min_seconds: least duration of a trial.
        max_trial_seconds: rates whose trial would take longer are not tried.
        tolerance: the search ends when the rate is known to this share …
        max_trials: or after so many trials.

    Raises:
        UsageError: values no search could have.
    """

    bound_ms: float
    percentile: str = "p99"
    seed: int = 0
    min_seconds: float = 1.0
    max_trial_seconds: float = 30.0
    tolerance: float = 0.05
    max_trials: int = 10

    def __post_init__(self) -> None:
        if self.percentile not in TAILS:
            raise UsageError(f"the percentile of the latency bound is one of {', '.join(TAILS)}; got {self.percentile}")
        if self.bound_ms <= 0 or self.tolerance <= 0 or self.max_trials < 1 or self.seed < 0:
            raise UsageError(
                "the latency bound and the tolerance must be above 0, max_trials 1 or more, seed 0 or more"
            )
        if not 0 <= self.min_seconds <= self.max_trial_seconds:
            raise UsageError("a trial needs 0 <= min_seconds <= max_trial_seconds")

    def queries(self, rate: float) -> int:
        """Queries of a trial at this rate: what the percentile needs, and the least duration."""
        return max(least_queries(TAILS[self.percentile]), round(rate * self.min_seconds))


@dataclass(frozen=True)
class Trial:
    """One rate tried.

    Attributes:
        rate: queries a second.
        queries: how many of them were served: all, or those until the bound was broken for good.
        over: of these, how many took longer than the bound.
        allowed: how many might have (MLPerf's early stopping criterion, see `statistics.allowed_over`).
        latency_ms: the percentile that was observed; None where the trial was broken off.
    """

    rate: float
    queries: int
    over: int
    allowed: int
    latency_ms: float | None

    @property
    def kept(self) -> bool:
        """Whether the bound was kept with 99% confidence."""
        return self.over <= self.allowed


def poisson_arrivals(count: int, rate: float, seed: int) -> npt.NDArray[np.float64]:
    """Arrival times ``[count]`` of a Poisson process of ``rate`` per second, seconds from 0."""
    return np.cumsum(np.random.default_rng(seed).standard_exponential(count)) / rate


def serve(
    function: Callable[[], object],
    arrivals: Sequence[float] | npt.NDArray[np.float64],
    bound_ms: float,
    allowed: int,
    *,
    clock: Clock = time.perf_counter_ns,
    wait_until: Callable[[int], None] | None = None,
) -> list[int]:
    """Serve queries one after another, in the order they arrive; each waits for those before it.

    Args:
        function: answers one query.
        arrivals: seconds from now, rising.
        bound_ms: a latency above it counts against ``allowed``.
        allowed: with more queries over the bound than this the trial is lost and ends.
        clock: in nanoseconds.
        wait_until: returns when ``clock`` has reached its argument.

    Returns:
        Latencies in nanoseconds, arrival to answer, of the queries served.
    """
    wait = wait_until or _wait_until
    begun = clock()
    found: list[int] = []
    over = 0
    for arrival in arrivals:
        due = begun + round(arrival * 1e9)
        if clock() < due:
            wait(due)
        function()
        found.append(clock() - due)
        over += found[-1] > bound_ms * 1e6
        if over > allowed:
            break
    return found


def greatest_rate(
    function: Callable[[], object],
    options: ServerOptions,
    warm_up: TimingOptions,
    *,
    clock: Clock = time.perf_counter_ns,
    wait_until: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Find the greatest rate of Poisson arrivals at which the latency bound is kept, by bisection.

    Returns:
        ``queries_per_second`` of the greatest rate that was run and kept the bound (None with ``why`` where none did),
        ``latency_ms`` and ``queries`` of that trial, ``bound_ms``, ``percentile``, ``seed``, ``trials``.
    """
    timed = measure(function, warm_up, clock=clock)
    # one server cannot answer more: at this rate the queue grows without end
    capacity = 1e9 / max(1.0, float(np.mean(timed.wall_ns)))
    lowest = least_queries(TAILS[options.percentile]) / options.max_trial_seconds
    answer: dict[str, Any] = {
        "bound_ms": options.bound_ms, "percentile": options.percentile, "seed": options.seed,
        "queries_per_second": None, "latency_ms": None, "queries": None, "trials": [],
    }  # fmt: skip
    if lowest >= capacity:
        why = f"{options.percentile} takes {least_queries(TAILS[options.percentile])} queries, more than fit into"
        return {**answer, "why": f"{why} {options.max_trial_seconds:g} s at {capacity:.3g} queries a second"}

    trials: list[Trial] = []

    def kept(rate: float) -> bool:
        count = options.queries(rate)
        allowed = allowed_over(count, TAILS[options.percentile])
        arrivals = poisson_arrivals(count, rate, options.seed)
        took = serve(function, arrivals, options.bound_ms, allowed, clock=clock, wait_until=wait_until)
        trials.append(_trial(rate, took, count, allowed, options))
        return trials[-1].kept

    low, high = lowest, capacity
    while high / low > 1 + options.tolerance and len(trials) < options.max_trials:
        middle = (low * high) ** 0.5 if not any(trial.kept for trial in trials) else (low + high) / 2
        low, high = (middle, high) if kept(middle) else (low, middle)
    if not any(trial.kept for trial in trials):
        kept(lowest)
    best = max((trial for trial in trials if trial.kept), key=lambda trial: trial.rate, default=None)
    answer["trials"] = [{**asdict(trial), "kept": trial.kept} for trial in trials]
    if best is None:
        return {**answer, "why": f"even {lowest:.3g} queries a second do not keep {options.bound_ms:g} ms"}
    return {**answer, "queries_per_second": best.rate, "latency_ms": best.latency_ms, "queries": best.queries}


def _trial(rate: float, took: list[int], count: int, allowed: int, options: ServerOptions) -> Trial:
    over = sum(value > options.bound_ms * 1e6 for value in took)
    observed = float(np.quantile(took, TAILS[options.percentile])) / 1e6 if len(took) == count else None
    return Trial(rate, len(took), over, allowed, observed)


def _wait_until(due: int) -> None:
    # a sleeping thread is woken late by tens of microseconds: the rest is waited out awake
    while (left := due - time.perf_counter_ns()) > 0:
        if left > 500_000:
            time.sleep((left - 300_000) / 1e9)
