"""The one timing loop, for all engines: it times a callable and knows nothing of what it times."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from edgevision.errors import UsageError
from edgevision_benchmarks.statistics import Summary, relative_spread, summarize

# medians of independent rounds further apart than this mean that the machine, not the model, was measured
MAX_ROUND_SPREAD = 0.10


@dataclass(frozen=True)
class TimingOptions:
    """How long to warm up and to measure. Whichever limit comes first ends the phase; a minimum overrides none.

    Attributes:
        min_runs: at least so many measured runs …
        min_seconds: … and so many seconds of them,
        max_runs: but never more runs than this,
        max_seconds: nor more seconds (always at least one run).
        window: warm-up is over when the last ``window`` runs …
        max_spread: … vary by less than this (robust coefficient of variation),
        max_warmup_runs: or after so many runs,
        max_warmup_seconds: or so many seconds.

    Raises:
        UsageError: a limit that no loop can keep.
    """

    min_runs: int = 30
    min_seconds: float = 1.0
    max_runs: int = 5000
    max_seconds: float = 20.0
    window: int = 10
    max_spread: float = 0.05
    max_warmup_runs: int = 300
    max_warmup_seconds: float = 2.0

    def __post_init__(self) -> None:
        if not 1 <= self.min_runs <= self.max_runs:
            raise UsageError(f"timing needs 1 <= min_runs <= max_runs; got {self.min_runs} and {self.max_runs}")
        if not 0 <= self.min_seconds <= self.max_seconds:
            raise UsageError(
                f"timing needs 0 <= min_seconds <= max_seconds; got {self.min_seconds} and {self.max_seconds}"
            )
        if self.window < 2 or self.max_spread <= 0 or self.max_warmup_runs < 1 or self.max_warmup_seconds < 0:
            raise UsageError("timing needs window >= 2, max_spread > 0, max_warmup_runs >= 1, max_warmup_seconds >= 0")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        return asdict(self)


@dataclass(frozen=True)
class Samples:
    """What one loop measured.

    Attributes:
        wall_ns: wall-clock time of every measured run, nanoseconds.
        cpu_ns: CPU time of all threads of the process during each run, nanoseconds.
        warmup_runs: runs before the measured ones.
        settled: whether the warm-up became steady before its limits.
    """

    wall_ns: tuple[int, ...]
    cpu_ns: tuple[int, ...]
    warmup_runs: int
    settled: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Samples:
        """Build from plain values."""
        return cls(tuple(values["wall_ns"]), tuple(values["cpu_ns"]), values["warmup_runs"], values["settled"])


@dataclass(frozen=True)
class Timing:
    """Rounds of one measurement taken together.

    Attributes:
        wall: wall-clock times.
        cpu: CPU times: on a shared machine their minimum is the steadiest figure.
        round_p50_ms: median of each round, milliseconds: how far the machine itself drifted.
        stable: every warm-up settled and the rounds' medians lie within 10% of each other.
    """

    wall: Summary
    cpu: Summary
    round_p50_ms: tuple[float, ...]
    stable: bool


def measure(
    function: Callable[[], object],
    options: TimingOptions | None = None,
    *,
    window: AbstractContextManager[object] | None = None,
    clock: Callable[[], int] = time.perf_counter_ns,
    cpu_clock: Callable[[], int] = time.process_time_ns,
) -> Samples:
    """Time ``function``: warm up until its runs are steady, then measure.

    Steady is judged as A. Georges, D. Buytaert and L. Eeckhout do (Statistically rigorous Java performance
    evaluation, OOPSLA 2007, section 4.2): the variation within a sliding window of runs falls under a limit.

    Args:
        function: what to time; its result is dropped within the timed span, as a user's code would.
        options: limits of the loop.
        window: entered when the warm-up is over and left behind the last run: what is to be known of the measured runs
            besides their times, such as their energy.
        clock: wall clock in nanoseconds.
        cpu_clock: CPU clock of the process in nanoseconds.
    """
    options = options or TimingOptions()
    warmup_runs, settled = _warm_up(function, options, clock)
    with window or nullcontext():
        wall, cpu = _timed(function, options, clock, cpu_clock)
    return Samples(tuple(wall), tuple(cpu), warmup_runs, settled)


def _timed(
    function: Callable[[], object], options: TimingOptions, clock: Callable[[], int], cpu_clock: Callable[[], int]
) -> tuple[list[int], list[int]]:
    wall: list[int] = []
    cpu: list[int] = []
    begun = clock()
    while True:
        # the CPU clock is a system call and stays outside the wall-clock span
        cpu_start = cpu_clock()
        start = clock()
        function()
        end = clock()
        cpu.append(cpu_clock() - cpu_start)
        wall.append(end - start)
        seconds = (end - begun) / 1e9
        if len(wall) >= options.max_runs or seconds >= options.max_seconds:
            return wall, cpu
        if len(wall) >= options.min_runs and seconds >= options.min_seconds:
            return wall, cpu


def _warm_up(function: Callable[[], object], options: TimingOptions, clock: Callable[[], int]) -> tuple[int, bool]:
    window: deque[int] = deque(maxlen=options.window)
    begun = clock()
    runs = 0
    while True:
        start = clock()
        function()
        end = clock()
        runs += 1
        window.append(end - start)
        if len(window) == options.window and relative_spread(window) <= options.max_spread:
            return runs, True
        if runs >= options.max_warmup_runs or (end - begun) / 1e9 >= options.max_warmup_seconds:
            return runs, False


def combine(rounds: Sequence[Samples]) -> Timing:
    """Take the rounds of one measurement together.

    Raises:
        ValueError: no rounds.
    """
    if not rounds:
        raise ValueError("no rounds to combine")
    medians = tuple(summarize(samples.wall_ns).p50 for samples in rounds)
    return Timing(
        wall=summarize([value for samples in rounds for value in samples.wall_ns]),
        cpu=summarize([value for samples in rounds for value in samples.cpu_ns]),
        round_p50_ms=medians,
        stable=all(samples.settled for samples in rounds) and max(medians) <= min(medians) * (1 + MAX_ROUND_SPREAD),
    )
