"""Statistics of samples and of shares, each with the interval that says how far to trust it. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

# two-sided 95% quantile of the normal distribution
Z95 = 1.959963984540054

# tails that are told, and only where `least_queries` are there
TAILS = {"p90": 0.90, "p95": 0.95, "p99": 0.99}

# MLPerf Inference judges tails with this confidence
MLPERF_CONFIDENCE = 0.99

# values kept of one round: enough for medians and tails to be compared later, in about a kilobyte
SKETCH = 101

Interval = tuple[float, float]


@dataclass(frozen=True)
class Summary:
    """Times of many runs, in milliseconds.

    Attributes:
        p50: median.
        p90: 90th percentile.
        p95: 95th percentile.
        p99: 99th percentile.
        mean: mean.
        min: least.
        std: standard deviation with n - 1 in the denominator; 0 for one run.
        n: number of runs.
        median_ci95: 95% confidence interval of the median; None for fewer than 6 runs.
        tails_ci95: 95% confidence intervals of those of ``p90 p95 p99`` that n is enough for (`least_queries`).
        p90_bound: what MLPerf's SingleStream reports after an early stop: with 99% confidence the 90th percentile lies
            no higher (`tail_bound`); None for fewer than 64 runs.
    """

    p50: float
    p90: float
    p95: float
    p99: float
    mean: float
    min: float
    std: float
    n: int
    median_ci95: Interval | None
    tails_ci95: dict[str, Interval]
    p90_bound: float | None

    def to_dict(self) -> dict[str, Any]:
        """The times alone, as JSON takes them; None for a tail that n is too small for."""
        found: dict[str, Any] = {"p50": self.p50}
        found |= {key: getattr(self, key) if key in self.tails_ci95 else None for key in TAILS}
        return {**found, "mean": self.mean, "min": self.min, "std": self.std}


def summarize(nanoseconds: Sequence[int]) -> Summary:
    """Summarize run times given in nanoseconds; percentiles interpolate linearly (Hyndman and Fan's type 7).

    Raises:
        ValueError: no runs.
    """
    if not len(nanoseconds):
        raise ValueError("no runs to summarize")
    values = np.sort(np.asarray(nanoseconds, np.float64)) / 1e6
    p50, p90, p95, p99 = (float(value) for value in np.percentile(values, (50, 90, 95, 99)))
    ranks = median_interval_ranks(len(values))
    tails = {key: percentile_interval_ranks(len(values), share) for key, share in TAILS.items() if told(key, values)}
    return Summary(
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        # rounding may carry the mean of equal values past them by one bit
        mean=float(np.clip(values.mean(), values[0], values[-1])),
        min=float(values[0]),
        std=float(values.std(ddof=1)) if len(values) > 1 else 0.0,
        n=len(values),
        median_ci95=None if ranks is None else (float(values[ranks[0]]), float(values[ranks[1]])),
        tails_ci95={key: (float(values[pair[0]]), float(values[pair[1]])) for key, pair in tails.items() if pair},
        p90_bound=tail_bound(values, TAILS["p90"]),
    )


def told(tail: str, values: Sequence[Any] | npt.NDArray[Any] | int) -> bool:
    """Whether ``p90``, ``p95`` or ``p99`` may be told of so many values."""
    n = values if isinstance(values, int) else len(values)
    return n >= least_queries(TAILS[tail])


@cache
def least_queries(share: float, confidence: float = MLPERF_CONFIDENCE) -> int:
    """Runs below which a percentile is not told: 64 for p90, 130 for p95, 662 for p99.

    The least n of which one run may lie above the percentile and leave us this confident that the percentile lies no
    higher than the second greatest: Σ_{i≤1} C(n, i) (1 − p)^i p^(n − i) ≤ 1 − confidence. It is the rule by which
    MLPerf Inference lets a run end early (MLCommons inference policies, early stopping criterion; LoadGen's minima of
    64 queries for SingleStream and 662 for MultiStream come out of it).
    """
    n = 2
    while allowed_over(n, share, confidence) < 1:
        n += 1
    return n


def allowed_over(n: int, share: float, confidence: float = MLPERF_CONFIDENCE) -> int:
    """Of n runs, how many may exceed a bound while we are this confident that the percentile keeps it; -1 for none.

    The greatest t with P(Binomial(n, 1 − p) ≤ t) ≤ 1 − confidence: MLPerf's early stopping criterion.
    """
    total, term, t = 0.0, share**n, 0
    if term == 0.0:  # n in the hundred thousands: past what a float holds
        cumulated = np.cumsum(_binomial(n, 1.0 - share))
        return int(np.searchsorted(cumulated, 1.0 - confidence, side="right")) - 1
    while total + term <= 1.0 - confidence:
        total += term
        term *= (n - t) / (t + 1) * (1.0 - share) / share
        t += 1
    return t - 1


def tail_bound(ordered: npt.NDArray[np.float64], share: float, confidence: float = MLPERF_CONFIDENCE) -> float | None:
    """What the percentile of a sorted sample lies below with this confidence; None for too small a sample."""
    n = len(ordered)
    allowed = allowed_over(n, share, confidence)
    return None if allowed < 1 else float(ordered[n - 1 - allowed])


def percentile_interval_ranks(n: int, share: float, confidence: float = 0.95) -> tuple[int, int] | None:
    """Ranks, counted from 0, of the ordered sample between which a percentile lies with at least this confidence.

    The number of values below it is Binomial(n, p) whatever their distribution (W. J. Conover, Practical Nonparametric
    Statistics, section 3.2); each side keeps half of the error. None where n is too small for one of the sides.
    """
    cumulated = np.cumsum(_binomial(n, share))
    half = (1.0 - confidence) / 2
    # rank l from 1: P(B ≤ l − 1) ≤ half; rank u from 1: P(B ≥ u) ≤ half
    low = int(np.searchsorted(cumulated, half, side="right"))
    high = int(np.searchsorted(cumulated, 1.0 - half, side="left")) + 1
    return None if low < 1 or high > n else (low - 1, high - 1)


def _binomial(n: int, share: float) -> npt.NDArray[np.float64]:
    """Probabilities of 0..n successes ``[n + 1]``."""
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    k = np.arange(n + 1)
    return np.asarray(np.exp(logs[n] - logs - logs[::-1] + k * math.log(share) + (n - k) * math.log1p(-share)))


def sketch(nanoseconds: Sequence[int], size: int = SKETCH) -> list[float]:
    """A sample as at most ``size`` evenly spaced quantiles in milliseconds, sorted, of five digits.

    Both ends are among them. Small samples are kept whole.
    """
    values = np.sort(np.asarray(nanoseconds, np.float64)) / 1e6
    if len(values) > size:
        values = np.quantile(values, np.linspace(0.0, 1.0, size))
    return [float(f"{value:.5g}") for value in values]


def t_quantile(probability: float, df: float) -> float:
    """Quantile of Student's t distribution with ``df`` ≥ 1 degrees of freedom, for 0.5 ≤ probability < 1."""
    if not 0.5 <= probability < 1.0 or df < 1.0:
        raise ValueError(f"needs 0.5 <= probability < 1 and df >= 1; got {probability} and {df}")
    low, high = 0.0, 1.0
    while _t_cdf(high, df) < probability:
        high *= 2.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_cdf(middle, df) < probability else (low, middle)
    return (low + high) / 2


def _t_cdf(t: float, df: float) -> float:
    # P(T ≤ t) = 1 − I_x(df/2, 1/2) / 2 with x = df / (df + t²), for t ≥ 0
    return 1.0 - _incomplete_beta(df / (df + t * t), df / 2, 0.5) / 2


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """Regularized incomplete beta function I_x(a, b) by its continued fraction (Abramowitz and Stegun 26.5.8)."""
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly its mirror image converges fast
        return 1.0 - _incomplete_beta(1.0 - x, b, a)
    factor = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    fraction = 1.0
    for step in range(300, 0, -1):
        m = step // 2
        if step % 2:
            coefficient = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            coefficient = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        fraction = 1.0 + coefficient / fraction
    return factor / (a * fraction)


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
