from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevision.errors import UsageError
from edgevision_benchmarks.timing import Samples, TimingOptions, combine, measure

MS = 1_000_000


class Simulation:
    """A function whose runs take given times on a clock of its own; half of each is CPU time."""

    def __init__(self, durations: Iterator[int]) -> None:
        self.durations = durations
        self.now = 0
        self.cpu = 0
        self.runs = 0

    def __call__(self) -> None:
        duration = next(self.durations)
        self.now += duration
        self.cpu += duration // 2
        self.runs += 1

    def measure(self, options: TimingOptions) -> Samples:
        return measure(self, options, clock=lambda: self.now, cpu_clock=lambda: self.cpu)


def forever(*values: int) -> Iterator[int]:
    while True:
        yield from values


def warming(start: int, end: int, factor: float) -> Iterator[int]:
    value = float(start)
    while True:
        yield max(end, int(value))
        value *= factor


def test_warm_up_ends_when_runs_are_steady_and_is_not_measured() -> None:
    simulation = Simulation(warming(50 * MS, 10 * MS, 0.8))
    samples = simulation.measure(TimingOptions(max_warmup_seconds=60))
    assert samples.settled
    # 8 falling runs, then a window of 10 of which at most a quarter may still be falling
    assert 10 <= samples.warmup_runs <= 18
    assert set(samples.wall_ns) == {10 * MS}
    assert set(samples.cpu_ns) == {5 * MS}


def test_warm_up_of_an_unsteady_function_is_bounded_by_runs_and_by_time() -> None:
    by_runs = Simulation(forever(1 * MS, 5 * MS)).measure(TimingOptions(max_warmup_runs=25, max_warmup_seconds=1e9))
    assert (by_runs.warmup_runs, by_runs.settled) == (25, False)
    by_time = Simulation(forever(100 * MS, 500 * MS)).measure(TimingOptions(max_warmup_runs=999, max_warmup_seconds=2))
    assert not by_time.settled
    # 1.9 s after seven runs, 2.4 s after eight
    assert by_time.warmup_runs == 8


@given(
    duration=st.integers(1000, 3 * 10**9),
    min_runs=st.integers(1, 50),
    min_seconds=st.floats(0, 2),
    max_seconds=st.floats(2, 6),
)
@settings(max_examples=100, deadline=None)
def test_both_minima_are_kept_unless_a_maximum_ends_it(
    duration: int, min_runs: int, min_seconds: float, max_seconds: float
) -> None:
    options = TimingOptions(min_runs=min_runs, min_seconds=min_seconds, max_runs=500, max_seconds=max_seconds)
    samples = Simulation(forever(duration)).measure(options)
    runs, seconds = len(samples.wall_ns), sum(samples.wall_ns) / 1e9
    assert runs >= 1
    assert runs <= 500
    # never more than one run past the limit
    assert seconds < max_seconds + duration / 1e9 + 1e-9
    if runs < min_runs or seconds < min_seconds:
        assert runs == 500 or seconds >= max_seconds


def test_real_clocks_time_a_real_function() -> None:
    def spin() -> int:
        return sum(range(2000))

    samples = measure(spin, TimingOptions(min_runs=20, min_seconds=0.0, max_warmup_runs=20))
    assert len(samples.wall_ns) >= 20
    assert min(samples.wall_ns) > 0
    assert sum(samples.cpu_ns) > 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_runs": 0},
        {"min_runs": 10, "max_runs": 9},
        {"min_seconds": 2.0, "max_seconds": 1.0},
        {"window": 1},
        {"max_spread": 0.0},
        {"max_warmup_runs": 0},
    ],
)
def test_limits_that_no_loop_can_keep_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        TimingOptions(**wrong)


def test_samples_survive_plain_values() -> None:
    samples = Samples((1, 2), (3, 4), 5, False)
    assert Samples.from_dict(samples.to_dict()) == samples


def test_rounds_are_pooled_and_judged() -> None:
    steady = [Samples((10 * MS,) * 20, (9 * MS,) * 20, 10, True), Samples((10 * MS,) * 20, (9 * MS,) * 20, 10, True)]
    timing = combine(steady)
    assert timing.stable
    assert timing.wall.n == 40
    assert timing.cpu.p50 == 9.0
    assert timing.round_p50_ms == (10.0, 10.0)
    drifted = combine([steady[0], Samples((12 * MS,) * 20, (9 * MS,) * 20, 10, True)])
    assert not drifted.stable
    unsettled = combine([steady[0], Samples((10 * MS,) * 20, (9 * MS,) * 20, 10, False)])
    assert not unsettled.stable
    with pytest.raises(ValueError, match="no rounds"):
        combine([])
