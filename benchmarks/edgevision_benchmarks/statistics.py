"""Statistics of samples and of shares, each with the interval that says how far to trust it. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# two-sided 95% quantile of the normal distribution
Z95 = 1.959963984540054


@dataclass(frozen=True)
class Summary:
    """Times of many runs, in milliseconds.

    Attributes:
        p50: median.
        p90: 90th percentile.
        p99: 99th percentile.
        mean: mean.
        min: least.
        std: standard deviation with n - 1 in the denominator; 0 for one run.
        n: number of runs.
        median_ci95: 95% confidence interval of the median; None for fewer than 6 runs.
    """

    p50: float
    p90: float
    p99: float
    mean: float
    min: float
    std: float
    n: int
    median_ci95: tuple[float, float] | None

    def to_dict(self) -> dict[str, Any]:
        """The times alone, as JSON takes them."""
        return {key: getattr(self, key) for key in ("p50", "p90", "p99", "mean", "min", "std")}


def summarize(nanoseconds: Sequence[int]) -> Summary:
    """Summarize run times given in nanoseconds; percentiles interpolate linearly (Hyndman and Fan's type 7).

    Raises:
        ValueError: no runs.
    """
    if not len(nanoseconds):
        raise ValueError("no runs to summarize")
    values = np.sort(np.asarray(nanoseconds, np.float64)) / 1e6
    p50, p90, p99 = (float(value) for value in np.percentile(values, (50, 90, 99)))
    ranks = median_interval_ranks(len(values))
    return Summary(
        p50=p50,
        p90=p90,
        p99=p99,
        # rounding may carry the mean of equal values past them by one bit
        mean=float(np.clip(values.mean(), values[0], values[-1])),
        min=float(values[0]),
        std=float(values.std(ddof=1)) if len(values) > 1 else 0.0,
        n=len(values),
        median_ci95=None if ranks is None else (float(values[ranks[0]]), float(values[ranks[1]])),
    )


def median_interval_ranks(n: int, confidence: float = 0.95) -> tuple[int, int] | None:
    """Ranks, counted from 0, of the ordered sample between which the median lies with this confidence.

    The number of values below the median is binomial with p = 1/2 whatever their distribution, so the interval
    needs no normality (W. R. Thompson 1936; J.-Y. Le Boudec, Performance Evaluation, theorem 2.1). It is the
    narrowest symmetric one, reckoned in whole numbers; None where n is too small for any (below 6 for 95%).
    """
    # exact: 2 · Σ_{i<k} C(n, i) ≤ (1 − confidence) · 2^n, as integers scaled by 10^9
    allowed = round((1.0 - confidence) * 10**9) << n
    term, total, k = 1, 0, 0
    while 2 * (total + term) * 10**9 <= allowed:
        total += term
        term = term * (n - k) // (k + 1)
        k += 1
    return None if k == 0 else (k - 1, n - k)


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a share (E. B. Wilson 1927): sound for small n and for shares near 0 and 1.

    Raises:
        ValueError: n is 0 or successes is not within 0..n.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"successes must lie in 0..n with n >= 1; got {successes} of {n}")
    share = successes / n
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, center - half)
    high = 1.0 if successes == n else min(1.0, center + half)
    return low, high


def relative_spread(values: Sequence[int]) -> float:
    """Robust coefficient of variation: interquartile range / 1.349 over the median.

    For normal values it is σ / μ; unlike that, one interrupted run does not move it.
    """
    q1, median, q3 = np.percentile(np.asarray(values, np.float64), (25, 50, 75))
    return float((q3 - q1) / 1.349 / median) if median > 0 else 0.0
