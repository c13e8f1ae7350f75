"""Axes: ranges that hold the values, and round numbers to write beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence


def axis(values: Sequence[float], count: float, limit: float | None = None) -> tuple[float, float, list[float]]:
    """Least and greatest value of an axis that holds all of ``values``, and about ``count`` round ones between.

    ``limit`` is a value that cannot be exceeded, e.g. 1 for shares.
    """
    low, high = min(values), max(values)
    if high - low < 1e-9 * max(1.0, abs(high)):
        margin = abs(high) * 0.1 or 0.1
        low, high = low - margin, high + margin
    step = _nice((high - low) / max(2.0, count))
    first, last = math.floor(low / step), math.ceil(high / step)
    if limit is not None and last * step > limit:
        last = round(limit / step)
    # a mark on the very edge would be cut
    if first > 0 and (low - first * step) < 0.15 * step:
        first -= 1
    if (last * step - high) < 0.15 * step and (limit is None or (last + 1) * step <= limit):
        last += 1
    top = last * step
    if limit is not None and top > limit - 1e-9:
        top = limit + 0.25 * step
    return first * step, top, [number * step for number in range(first, last + 1)]


def log_axis(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Likewise for a logarithmic axis, with ticks at 1, 2 and 5."""
    low, high = min(values) / 1.25, max(values) * 1.25
    ticks = [
        digit * 10.0**power
        for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for digit in (1, 2, 5)
    ]
    return low, high, [tick for tick in ticks if low <= tick <= high]


def _nice(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return float(next(digit * power for digit in (1, 2, 5, 10) if digit * power >= step * 0.999))
