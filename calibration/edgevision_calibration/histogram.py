"""A streaming histogram whose range grows as values come, exactly and in any order."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgevision.errors import CalibrationError

BINS = 4096
# values are binned in pieces that stay in the processor's second-level cache
_PIECE = 1 << 16
_LEAST_EXPONENT = -100


class Histogram:
    """Counts of values in bins whose width is a power of two and whose edges are multiples of it.

    When a value falls outside, the width doubles and neighbouring bins merge, which is exact: the result is the
    same whatever the order or the batching of the values. Memory is `BINS` counters, however many values came.

    Attributes:
        counts: int64 ``[BINS]``.
        exponent: bin width is ``2**exponent``.
        start: bin ``i`` covers ``[start + i, start + i + 1) · 2**exponent``.
        low: least value seen.
        high: greatest value seen.
        mean_low: least value of a picture, averaged over the pictures.
        mean_high: greatest value of a picture, averaged over the pictures.
        pictures: how many pictures these averages are taken over; 0 where nobody told.
    """

    def __init__(self) -> None:
        self.counts: npt.NDArray[np.int64] = np.zeros(BINS, np.int64)
        self.exponent = _LEAST_EXPONENT
        self.start = 0
        self.low = math.inf
        self.high = -math.inf
        self.mean_low = 0.0
        self.mean_high = 0.0
        self.pictures = 0

    @property
    def width(self) -> float:
        """Width of a bin."""
        return math.ldexp(1.0, self.exponent)

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    @property
    def centers(self) -> npt.NDArray[np.float64]:
        """Middle of every bin, float64 ``[BINS]``."""
        return np.asarray((self.start + np.arange(BINS) + 0.5) * self.width, np.float64)

    def update(self, values: npt.NDArray[np.float32], low: float, high: float) -> None:
        """Count ``values`` (any shape), whose least and greatest are ``low`` and ``high``.

        Raises:
            CalibrationError: a value is NaN or infinite.
        """
        if not (math.isfinite(low) and math.isfinite(high)):
            raise CalibrationError("an activation is NaN or infinite: check the weights and the calibration images")
        self._cover(min(self.low, low), max(self.high, high))
        flat = values.reshape(-1)
        # a power of two: the product is exact, so a value's bin never depends on rounding
        inverse = np.float32(math.ldexp(1.0, -self.exponent))
        start = np.float32(self.start)
        for first in range(0, flat.size, _PIECE):
            scaled = flat[first : first + _PIECE] * inverse
            np.floor(scaled, out=scaled)
            scaled -= start
            self.counts += np.bincount(scaled.astype(np.int64), minlength=BINS)

    def count_pictures(self, lows: Sequence[float], highs: Sequence[float]) -> None:
        """Take the least and greatest values of some pictures into their averages."""
        self._average(sum(lows), sum(highs), len(lows))

    def _average(self, low_sum: float, high_sum: float, pictures: int) -> None:
        if not pictures:
            return
        total = self.pictures + pictures
        self.mean_low = (self.mean_low * self.pictures + low_sum) / total
        self.mean_high = (self.mean_high * self.pictures + high_sum) / total
        self.pictures = total

    def merge(self, other: Histogram) -> None:
        """Add another histogram's counts, exactly."""
        if other.total == 0:
            return
        self._average(other.mean_low * other.pictures, other.mean_high * other.pictures, other.pictures)
        self._cover(min(self.low, other.low), max(self.high, other.high))
        used = np.flatnonzero(other.counts)
        indices = ((used + other.start) >> (self.exponent - other.exponent)) - self.start
        np.add.at(self.counts, indices, other.counts[used])

    def _cover(self, low: float, high: float) -> None:
        """Widen until ``[low, high]`` and everything counted so far fits."""
        exponent = max(self.exponent, _exponent_for(low, high))
        start = math.floor(math.ldexp(low, -exponent))
        if exponent != self.exponent or start != self.start:
            used = np.flatnonzero(self.counts)
            counts = np.zeros(BINS, np.int64)
            np.add.at(counts, ((used + self.start) >> (exponent - self.exponent)) - start, self.counts[used])
            self.counts, self.exponent, self.start = counts, exponent, start
        self.low, self.high = low, high


def _exponent_for(low: float, high: float) -> int:
    """Least exponent with which the bins of ``low`` and ``high`` are fewer than `BINS` apart."""
    span = max(high - low, abs(high), abs(low)) / BINS
    exponent = max(_LEAST_EXPONENT, math.frexp(span)[1] - 2) if span > 0 else _LEAST_EXPONENT
    while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= BINS:
        exponent += 1
    return exponent
