from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevision_benchmarks.statistics import median_interval_ranks, relative_spread, summarize, wilson

times = st.lists(st.integers(1, 10**12), min_size=1, max_size=300)


@given(times)
@settings(max_examples=200, deadline=None)
def test_summary_is_ordered_and_lies_within_the_sample(values: list[int]) -> None:
    summary = summarize(values)
    low, high = min(values) / 1e6, max(values) / 1e6
    assert low == summary.min <= summary.p50 <= summary.p90 <= summary.p99 <= high
    assert low <= summary.mean <= high
    assert summary.std >= 0
    assert summary.n == len(values)
    if summary.median_ci95 is not None:
        assert low <= summary.median_ci95[0] <= summary.p50 <= summary.median_ci95[1] <= high


@given(times, st.integers(2, 50))
@settings(max_examples=100, deadline=None)
def test_summary_scales_with_the_unit(values: list[int], factor: int) -> None:
    one, many = summarize(values), summarize([value * factor for value in values])
    # float64 rounding only
    for key, value in one.to_dict().items():
        expected = None if value is None else pytest.approx(value * factor, rel=1e-9, abs=1e-9)
        assert many.to_dict()[key] == expected


def test_percentiles_of_a_known_sample() -> None:
    summary = summarize([n * 1_000_000 for n in range(1, 102)])
    assert (summary.p50, summary.p90, summary.p99) == (51.0, 91.0, 100.0)
    assert summary.mean == pytest.approx(51.0)
    # sample variance of 1..n is n (n + 1) / 12
    assert summary.std == pytest.approx(math.sqrt(101 * 102 / 12))


def test_no_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="no runs"):
        summarize([])


# ranks from 1 in W. J. Conover, Practical Nonparametric Statistics, and Le Boudec's table A.1 for 95%
@pytest.mark.parametrize(
    ("n", "ranks"), [(6, (1, 6)), (9, (2, 8)), (10, (2, 9)), (20, (6, 15)), (50, (18, 33)), (70, (27, 44))]
)
def test_median_interval_has_the_published_ranks(n: int, ranks: tuple[int, int]) -> None:
    found = median_interval_ranks(n)
    assert found == (ranks[0] - 1, ranks[1] - 1)


def test_no_median_interval_of_five_values() -> None:
    assert median_interval_ranks(5) is None


@given(st.integers(6, 400), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
@settings(max_examples=100, deadline=None)
def test_median_interval_covers_at_least_what_it_says_and_no_rank_more(n: int, confidence: float) -> None:
    ranks = median_interval_ranks(n, confidence)

    def coverage(k: int) -> float:
        # P(X_(k+1) <= median <= X_(n-k)), ranks from 1, for a continuous distribution
        return 1 - 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n

    if ranks is None:
        assert coverage(0) < confidence
        return
    assert ranks[0] + ranks[1] == n - 1
    # the confidence is taken in steps of 1e-9
    assert coverage(ranks[0]) >= confidence - 1e-8
    assert coverage(ranks[0] + 1) < confidence + 1e-8


def test_median_interval_covers_the_true_median_of_a_skewed_distribution() -> None:
    rng = np.random.default_rng(11)
    samples = np.sort(rng.lognormal(0.0, 1.0, (2000, 40)), axis=1)
    ranks = median_interval_ranks(40)
    assert ranks is not None
    covered = np.mean((samples[:, ranks[0]] <= 1.0) & (samples[:, ranks[1]] >= 1.0))
    # true coverage is 96.2%; 4 standard errors of 2000 trials are 1.7 points
    assert 0.945 <= covered <= 0.98


def test_wilson_agrees_with_the_published_example() -> None:
    # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3: 81/263, 15/148, 0/20, 1/29
    for successes, n, expected in [
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ]:
        # the table has four decimals
        assert wilson(successes, n) == pytest.approx(expected, abs=5.1e-5)


@given(st.integers(1, 10_000), st.data())
@settings(max_examples=200, deadline=None)
def test_wilson_holds_the_share_and_mirrors(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    low, high = wilson(successes, n)
    assert 0.0 <= low <= successes / n <= high <= 1.0
    mirrored = wilson(n - successes, n)
    # float64 rounding only
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_what_is_no_share(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match=r"0\.\.n"):
        wilson(successes, n)


def test_relative_spread_is_sigma_over_mu_and_ignores_one_interruption() -> None:
    values = np.random.default_rng(2).normal(1e6, 3e4, 20_000).astype(int).tolist()
    # 20,000 values estimate the quartiles of 3% to about 1% of it
    assert relative_spread(values) == pytest.approx(0.03, rel=0.05)
    assert relative_spread([100] * 9 + [10_000]) == 0.0
    assert relative_spread([0, 0, 0]) == 0.0
