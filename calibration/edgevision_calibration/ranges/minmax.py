"""Everything that was seen."""

from __future__ import annotations

from edgevision_calibration.histogram import Histogram


def minmax_range(histogram: Histogram, *, symmetric: bool) -> tuple[float, float]:
    """The least interval that holds zero and every value seen; nothing is clipped."""
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if symmetric:
        high = max(-low, high)
        low = -high
    return low, high
