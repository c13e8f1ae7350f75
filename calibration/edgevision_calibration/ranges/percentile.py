"""All but the outermost values."""

from __future__ import annotations

import numpy as np

from edgevision_calibration.histogram import Histogram
from edgevision_calibration.ranges.minmax import minmax_range

PERCENTILE = 99.99


def percentile_range(histogram: Histogram, *, symmetric: bool, percentile: float = PERCENTILE) -> tuple[float, float]:
    """The interval that leaves out ``100 − percentile`` per cent of the values.

    The cut is made on magnitudes where ``symmetric``, else half of it at either end. Its precision is a bin
    of the histogram, at most a 1,024th of the greatest magnitude.
    """
    low, high = minmax_range(histogram, symmetric=symmetric)
    counts, centers, half = histogram.counts, histogram.centers, histogram.width / 2
    outside = (100.0 - percentile) / 100.0
    if symmetric:
        magnitudes = np.abs(centers)
        order = np.argsort(magnitudes, kind="stable")
        cumulative = np.cumsum(counts[order])
        cut = int(np.searchsorted(cumulative, (1.0 - outside) * cumulative[-1]))
        bound = min(float(magnitudes[order[min(cut, len(order) - 1)]]) + half, high)
        return -bound, bound
    cumulative = np.cumsum(counts)
    total = cumulative[-1]
    first = int(np.searchsorted(cumulative, outside / 2 * total, side="right"))
    last = int(np.searchsorted(cumulative, (1.0 - outside / 2) * total))
    last = min(last, len(centers) - 1)
    return max(low, min(float(centers[first]) - half, 0.0)), min(high, max(float(centers[last]) + half, 0.0))
