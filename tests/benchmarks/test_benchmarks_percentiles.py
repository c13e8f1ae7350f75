"""Tails: how many runs they take, their intervals, what is kept of a sample; Student's t."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevision_benchmarks.statistics import (
    SKETCH,
    allowed_over,
    least_queries,
    percentile_interval_ranks,
    sketch,
    summarize,
    t_quantile,
    tail_bound,
)


def at_most(t: int, n: int, over: float) -> float:
    return sum(math.comb(n, i) * over**i * (1 - over) ** (n - i) for i in range(t + 1))


@pytest.mark.parametrize(("share", "least"), [(0.90, 64), (0.95, 130), (0.99, 662)])
def test_a_tail_takes_the_queries_mlperf_asks_for(share: float, least: int) -> None:
    assert least_queries(share) == least
    # by the definition: one above is allowed at 99% confidence, and not with one query fewer
    assert at_most(1, least, 1 - share) <= 0.01 < at_most(1, least - 1, 1 - share)


@given(st.integers(2, 2000), st.sampled_from([0.9, 0.95, 0.99]))
@settings(max_examples=60, deadline=None)
def test_as_many_may_be_over_as_the_binomial_allows(n: int, share: float) -> None:
    t = allowed_over(n, share)
    if t >= 0:
        assert at_most(t, n, 1 - share) <= 0.01
    assert at_most(t + 1, n, 1 - share) > 0.01


def test_many_queries_do_not_underflow() -> None:
    # 1% of 300,000 are 3,000; three standard deviations of 54.5 above and below
    assert 3000 - 3 * 54.5 < allowed_over(300_000, 0.99) < 3000


@given(st.integers(6, 1000), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
@settings(max_examples=60, deadline=None)
def test_percentile_intervals_cover_what_they_say_and_no_rank_more(n: int, share: float) -> None:
    ranks = percentile_interval_ranks(n, share)
    if ranks is None:
        return
    low, high = ranks[0] + 1, ranks[1] + 1
    below = at_most(low - 1, n, share)  # P(X_(low) > q)
    above = 1 - at_most(high - 1, n, share)  # P(X_(high) < q)
    # float64 sums of up to 1000 terms
    assert below <= 0.025 + 1e-9
    assert above <= 0.025 + 1e-9
    assert at_most(low, n, share) > 0.025 - 1e-9
    assert 1 - at_most(high - 2, n, share) > 0.025 - 1e-9


def test_intervals_and_bound_cover_the_true_tail() -> None:
    rng = np.random.default_rng(3)
    samples = np.sort(rng.lognormal(0.0, 0.5, (2000, 200)), axis=1)
    true = math.exp(0.5 * 1.2815515655446004)  # 90% quantile of the normal distribution
    ranks = percentile_interval_ranks(200, 0.9)
    assert ranks is not None
    covered = np.mean((samples[:, ranks[0]] <= true) & (true <= samples[:, ranks[1]]))
    # at least 95%; 4 standard errors of 2000 trials are 2 points
    assert covered >= 0.93
    bounded = np.mean([(tail_bound(row, 0.9) or 0.0) >= true for row in samples])
    # at least 99%; 4 standard errors are 0.9 points
    assert bounded >= 0.981


@pytest.mark.parametrize(("n", "told"), [(63, []), (64, ["p90"]), (130, ["p90", "p95"]), (662, ["p90", "p95", "p99"])])
def test_only_tails_with_enough_runs_are_told(n: int, told: list[str]) -> None:
    summary = summarize(list(range(10**6, 10**6 + n)))
    found = summary.to_dict()
    assert [name for name in ("p90", "p95", "p99") if found[name] is not None] == told == list(summary.tails_ci95)
    for name in told:
        low, high = summary.tails_ci95[name]
        assert low <= found[name] <= high
    assert (summary.p90_bound is None) == (n < 64)
    if summary.p90_bound is not None:
        assert summary.p90_bound >= summary.p90


@given(st.lists(st.integers(10**4, 10**10), min_size=1, max_size=600))
@settings(max_examples=60, deadline=None)
def test_a_sketch_is_small_sorted_and_keeps_the_median(values: list[int]) -> None:
    kept = sketch(values)
    assert len(kept) <= SKETCH
    assert kept == sorted(kept)
    # five digits
    assert kept[0] == pytest.approx(min(values) / 1e6, rel=1e-4)
    assert kept[-1] == pytest.approx(max(values) / 1e6, rel=1e-4)
    assert np.median(kept) == pytest.approx(np.median(values) / 1e6, rel=1e-4)


# W. S. Gosset's distribution as every table has it
@pytest.mark.parametrize(
    ("probability", "df", "value"),
    [
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.975, 4, 2.776),
        (0.99, 10, 2.764),
        (0.995, 30, 2.750),
    ],
)
def test_t_quantiles(probability: float, df: float, value: float) -> None:
    # tables have three decimals
    assert t_quantile(probability, df) == pytest.approx(value, abs=6e-4)


def test_t_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="needs"):
        t_quantile(0.3, 4)
    assert t_quantile(0.5, 4) == pytest.approx(0.0, abs=1e-9)
