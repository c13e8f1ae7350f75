"""How sure a difference between two measurements is: times by hierarchical bootstrap, shares by their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgevision_benchmarks.statistics import t_quantile, wilson

# they give a standard error, of which this many know two digits
RESAMPLES = 1000

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rounds:
    """Independent rounds of one measurement.

    Attributes:
        values: of each round a sorted sample ``[m]``, or evenly spaced quantiles that stand for it.
        counts: how many runs each of them stands for.
    """

    values: tuple[Array, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, values: Sequence[Sequence[float]], counts: Sequence[int] | None = None) -> Rounds:
        """From plain numbers above 0; without counts every value stands for one run."""
        sorted_ = tuple(np.sort(np.asarray(each, np.float64)) for each in values)
        return cls(sorted_, tuple(counts) if counts is not None else tuple(len(each) for each in sorted_))

    @property
    def logs(self) -> Array:
        """Logarithm of each round's median ``[rounds]``."""
        return np.log([float(np.median(each)) for each in self.values])

    @property
    def center(self) -> float:
        """The geometric mean of the rounds' medians."""
        return math.exp(float(self.logs.mean()))


@dataclass(frozen=True)
class Interval:
    """An estimate and how far it may be off; ``low`` and ``high`` are None where that cannot be told."""

    estimate: float
    low: float | None
    high: float | None


def ratio_of_medians(
    before: Rounds, after: Rounds, *, confidence: float, rng: np.random.Generator, resamples: int = RESAMPLES
) -> Interval:
    """Ratio of the median times, after over before, with its confidence interval.

    The medians of a side's rounds are averaged on the logarithmic scale. How much that average would scatter, were the
    measurement repeated, comes from a hierarchical bootstrap (A. C. Davison and D. V. Hinkley, Bootstrap Methods and
    their Application, section 3.8): rounds are drawn with replacement, then runs within each drawn round. Runs of one
    process resemble each other, so it is rounds that carry the information (T. Kalibera and R. Jones, ISMM 2013).

    Percentiles of the bootstrap would not do: with three rounds a side the greatest separation there can be comes up by
    chance once in twenty times. So the bootstrap gives the standard error, corrected for the few rounds by k / (k − 1),
    and Student's t with Welch's degrees of freedom gives the interval.

    Returns:
        The ratio; without an interval where a side has fewer than two rounds.
    """
    estimate = math.exp(float(after.logs.mean() - before.logs.mean()))
    sides = (before, after)
    if min(len(side.values) for side in sides) < 2:
        return Interval(estimate, None, None)
    variances = [_variance(side, rng, resamples) for side in sides]
    total = sum(variances)
    if total <= 0.0:
        return Interval(estimate, estimate, estimate)
    df = total**2 / sum(variance**2 / (len(side.values) - 1) for side, variance in zip(sides, variances, strict=True))
    half = t_quantile(0.5 + confidence / 2, max(1.0, df)) * math.sqrt(total)
    return Interval(estimate, estimate * math.exp(-half), estimate * math.exp(half))


def median_interval(rounds: Rounds, *, confidence: float = 0.95, seed: int = 0) -> tuple[float, float] | None:
    """By how much the median of a measurement in rounds may be off, as factors below and above 1.

    From the scatter of the rounds, as `ratio_of_medians` has it; None for fewer than two rounds. The order statistics
    of all runs together would not do: they take runs of one process for independent, and their interval shrinks with
    every run, while from one process to the next the median moves by what no number of runs averages out.
    """
    if len(rounds.values) < 2:
        return None
    error = math.sqrt(_variance(rounds, np.random.default_rng(seed), RESAMPLES))
    half = t_quantile(0.5 + confidence / 2, len(rounds.values) - 1) * error
    return math.exp(-half), math.exp(half)


def _variance(side: Rounds, rng: np.random.Generator, resamples: int) -> float:
    """Variance of the mean of a side's log medians, by resampling rounds, then runs."""
    k = len(side.values)
    drawn = rng.integers(0, k, (resamples, k))
    medians = np.empty((resamples, k))
    for index, (values, count) in enumerate(zip(side.values, side.counts, strict=True)):
        # each drawn round has its runs drawn anew
        chosen = drawn == index
        medians[chosen] = _bootstrap_medians(values, count, int(chosen.sum()), rng)
    means = np.log(medians).mean(axis=1)
    return float(means.var(ddof=1)) * k / (k - 1)


def _bootstrap_medians(values: Array, count: int, resamples: int, rng: np.random.Generator) -> Array:
    """Medians ``[resamples]`` of samples drawn with replacement.

    Not drawn value by value: the middle of ``count`` uniform ranks has a Beta distribution, and the sorted sample's
    value at such a rank is the median of the resample.
    """
    if len(values) == 1:
        return np.full(resamples, values[0])
    middle = (count + 1) / 2
    ranks = rng.beta(middle, count + 1 - middle, resamples)
    return np.interp(ranks, np.linspace(0.0, 1.0, len(values)), values)


def unpaired_difference(before: tuple[int, int], after: tuple[int, int], *, z: float) -> Interval:
    """Difference of two shares, after − before, each as (right, n), on different or unknown pictures.

    The interval is R. G. Newcombe's hybrid of Wilson's (Statistics in Medicine 17, 1998, method 10).
    """
    p, q = before[0] / before[1], after[0] / after[1]
    (p_low, p_high), (q_low, q_high) = wilson(*before, z=z), wilson(*after, z=z)
    low = (q - p) - math.hypot(q - q_low, p_high - p)
    high = (q - p) + math.hypot(q_high - q, p - p_low)
    return Interval(q - p, low, high)


def paired_difference(before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_], *, z: float) -> Interval:
    """Difference of two shares, after − before, on the same pictures ``[N]``: what both answer alike cancels out.

    The interval is A. Agresti and Y. Min's (Statistics in Medicine 24, 2005): Wald's after half a picture was added to
    each of the four cells.
    """
    n = len(before)
    gained, lost = int((~before & after).sum()), int((before & ~after).sum())
    center = (gained - lost) / (n + 2)
    half = z * math.sqrt(max(0.0, (gained + lost + 1) - (gained - lost) ** 2 / (n + 2))) / (n + 2)
    return Interval((gained - lost) / n, center - half, center + half)


def resampled_interval(estimate: float, draws: Sequence[float], pictures: int, *, confidence: float = 0.95) -> Interval:
    """Interval of a figure of ``pictures`` pictures, from what it is on draws of them (the bootstrap's standard error).

    The variance is corrected for the few pictures by n / (n − 1), and Student's t has one degree of freedom less than
    there are pictures, or draws.

    Returns:
        The estimate; without an interval where there are fewer than two of either.
    """
    if min(len(draws), pictures) < 2:
        return Interval(estimate, None, None)
    error = float(np.std(draws, ddof=1)) * math.sqrt(pictures / (pictures - 1))
    half = t_quantile(0.5 + confidence / 2, min(len(draws), pictures) - 1) * error
    return Interval(estimate, estimate - half, estimate + half)


def resampled_difference(
    before: Interval, after: Interval, *, draws: Sequence[float] | None, pictures: int, confidence: float
) -> Interval:
    """Difference of two such figures, after − before.

    Args:
        before: the first, with its interval at ``confidence``.
        after: the second, likewise.
        draws: the difference on each draw of the same pictures, so that what both find alike cancels out; None for
            different or unknown pictures, whose errors are independent.
        pictures: how many there are.
        confidence: of the interval.
    """
    change = after.estimate - before.estimate
    if draws is not None:
        return resampled_interval(change, draws, pictures, confidence=confidence)
    if before.low is None or after.low is None:
        return Interval(change, None, None)
    half = math.hypot(before.estimate - before.low, after.estimate - after.low)
    return Interval(change, change - half, change + half)
