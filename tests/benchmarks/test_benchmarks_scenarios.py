"""Offline and Server on a clock of their own, and in a real process."""

from __future__ import annotations

import numpy as np
import pytest

from edgevision.errors import UsageError
from edgevision_benchmarks.bench import BenchOptions, bench
from edgevision_benchmarks.scenarios import ServerOptions, greatest_rate, offline, poisson_arrivals, serve
from edgevision_benchmarks.statistics import allowed_over
from edgevision_benchmarks.timing import TimingOptions

MS = 1_000_000
QUICK = TimingOptions(min_runs=10, min_seconds=0.0, max_warmup_runs=12)


class Server:
    """Answers after a fixed time of a clock that only it and waiting move."""

    def __init__(self, service_ns: int) -> None:
        self.service = service_ns
        self.now = 0

    def __call__(self) -> None:
        self.now += self.service

    def clock(self) -> int:
        return self.now

    def wait_until(self, due: int) -> None:
        assert due > self.now
        self.now = due


def waiting(arrivals: np.ndarray, service: float) -> np.ndarray:
    """Latencies by D. V. Lindley's recursion, in the arrivals' unit."""
    found = []
    free = 0.0
    for arrival in arrivals:
        free = max(free, arrival) + service
        found.append(free - arrival)
    return np.asarray(found)


def test_offline_counts_samples_over_time() -> None:
    server = Server(20 * MS)
    found = offline(server, 8, TimingOptions(min_runs=5, min_seconds=0.0), clock=server.clock)
    assert found["batch"] == 8
    assert found["samples"] >= 40
    assert found["samples_per_second"] == pytest.approx(400.0)


def test_arrivals_are_a_seeded_poisson_process() -> None:
    times = poisson_arrivals(20_000, 50.0, seed=4)
    assert np.array_equal(times, poisson_arrivals(20_000, 50.0, seed=4))
    assert not np.array_equal(times, poisson_arrivals(20_000, 50.0, seed=5))
    gaps = np.diff(times)
    # exponential: mean and deviation are 1 / rate; 20,000 gaps know them to 1%, five times that is allowed
    assert gaps.mean() == pytest.approx(0.02, rel=0.05)
    assert gaps.std() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("rate", [20.0, 80.0, 95.0])
def test_queries_wait_for_those_before_them(rate: float) -> None:
    server = Server(10 * MS)
    arrivals = poisson_arrivals(500, rate, seed=1)
    took = serve(server, arrivals, 1e9, 500, clock=server.clock, wait_until=server.wait_until)
    # arrivals are rounded to nanoseconds
    assert np.allclose(np.asarray(took) / 1e9, waiting(arrivals, 0.010), atol=1e-6)


def test_a_lost_trial_ends_early() -> None:
    server = Server(10 * MS)
    took = serve(server, np.zeros(1000), 25.0, 3, clock=server.clock, wait_until=server.wait_until)
    # two keep 25 ms, four do not
    assert len(took) == 6


@pytest.mark.parametrize("bound_ms", [40.0, 100.0, 400.0])
def test_the_greatest_rate_keeps_the_bound_and_a_little_more_does_not(bound_ms: float) -> None:
    server = Server(10 * MS)
    options = ServerOptions(bound_ms, seed=7, tolerance=0.02, max_trials=30, max_trial_seconds=60.0)
    found = greatest_rate(server, options, QUICK, clock=server.clock, wait_until=server.wait_until)
    rate = found["queries_per_second"]
    assert rate is not None

    def over(at: float) -> tuple[int, int]:
        count = options.queries(at)
        latencies = waiting(poisson_arrivals(count, at, 7), 0.010)
        return int((latencies > bound_ms / 1e3).sum()), allowed_over(count, 0.99)

    kept, allowed = over(rate)
    assert kept <= allowed
    assert found["latency_ms"] <= bound_ms
    # the search stops within 2% of a rate that did not; no server answers more than one query each 10 ms
    broken, allowed = over(min(100.0, rate * 1.021))
    assert broken > allowed or rate > 98.0
    assert all(trial["rate"] < 100.0 for trial in found["trials"])
    again = greatest_rate(server, options, QUICK, clock=server.clock, wait_until=server.wait_until)
    assert again["queries_per_second"] == pytest.approx(rate)


def test_an_impossible_bound_says_why() -> None:
    server = Server(10 * MS)
    options = ServerOptions(8.0, max_trial_seconds=60.0)
    found = greatest_rate(server, options, QUICK, clock=server.clock, wait_until=server.wait_until)
    assert found["queries_per_second"] is None
    assert "do not keep 8 ms" in found["why"]
    slow = Server(1000 * MS)
    found = greatest_rate(slow, options, QUICK, clock=slow.clock, wait_until=slow.wait_until)
    assert found["trials"] == []
    assert "662 queries" in found["why"]


@pytest.mark.parametrize(
    "wrong", [{"bound_ms": 0.0}, {"bound_ms": 1.0, "percentile": "p42"}, {"bound_ms": 1.0, "min_seconds": 99.0}]
)
def test_searches_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        ServerOptions(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scenarios": ("ofline",)}, "unknown scenario 'ofline'"),
        ({"scenarios": ("server",)}, "needs a latency bound"),
        ({"offline_batch": 0}, "offline_batch"),
    ],
)
def test_options_of_scenarios_are_checked_before_measuring(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BenchOptions(**wrong)  # type: ignore[arg-type]


def test_real_processes_run_both_scenarios(make_bundle) -> None:
    path = make_bundle("a", seconds=0.0005)
    fixed = make_bundle("b", batch=4)
    report = bench(
        [path, fixed], rounds=2, seconds=0.02, min_runs=5, end_to_end=False, scenarios=["offline", "server"],
        offline_batch=4, latency_bound_ms=2000.0,
    )  # fmt: skip
    row, other = report.results
    assert row.error is None
    assert row.offline is not None
    assert row.offline["batch"] == 4
    assert len(row.offline["rounds"]) == 2
    # the stand-in sleeps half a millisecond a batch, however many are in it: at most 8000 samples a second
    assert 0 < row.offline["samples_per_second"] <= 8000
    assert row.server is not None
    assert row.server["percentile"] == "p99"
    assert 0 < row.server["queries_per_second"] <= 2000
    assert row.server["latency_ms"] <= 2000.0
    assert row.server["queries"] >= 662
    # a failed scenario does not cost the row
    assert other.error is None
    assert other.server is not None
    assert "batch is fixed to 4" in other.server["error"]
