"""The interval whose quantized distribution is nearest in Kullback-Leibler divergence."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgevision_calibration.histogram import Histogram
from edgevision_calibration.ranges.minmax import minmax_range

_LEVELS = 128
_BINS = 2048
_SMOOTHING = 1e-4


def entropy_range(histogram: Histogram, *, symmetric: bool) -> tuple[float, float]:
    """The clipping range with the least KL divergence between the values and their quantized selves.

    The magnitudes' histogram is clipped at a rising threshold, its tail added to the last bin, and compared
    with the same histogram on 128 levels. Where not ``symmetric`` the ends seen are clipped at the threshold.

    Source: S. Migacz, 8-bit Inference with TensorRT, GTC 2017, slides "Entropy calibration: pseudocode".
    """
    low, high = minmax_range(histogram, symmetric=symmetric)
    peak = max(-low, high)
    if peak <= 0:
        return low, high
    threshold = (_best_threshold(_magnitudes(histogram, peak)) + 0.5) * peak / _BINS
    return max(low, -threshold), min(high, threshold)


def _magnitudes(histogram: Histogram, peak: float) -> npt.NDArray[np.float64]:
    """Counts of |x| in `_BINS` bins over ``[0, peak]``; exact zeros (ReLU's) are left out."""
    counts = histogram.counts.astype(np.float64)
    zero_bin = -histogram.start
    if histogram.low >= 0 and 0 <= zero_bin < len(counts):
        # a spike at zero is quantized without error and would drown the rest
        counts[zero_bin] = 0.0
    bins = np.minimum(np.abs(histogram.centers) / peak * _BINS, _BINS - 1).astype(np.int64)
    return np.bincount(bins, weights=counts, minlength=_BINS).astype(np.float64)


def _best_threshold(counts: npt.NDArray[np.float64]) -> int:
    """Number of bins to keep."""
    total = counts.sum()
    if total <= 0:
        return len(counts)
    p_all = counts / total
    tail = p_all[::-1].cumsum()[::-1]
    cumulative = np.concatenate([[0.0], p_all.cumsum()])
    best, best_divergence = len(counts) - 1, np.inf
    for kept in range(_LEVELS, len(counts)):
        p = p_all[:kept].copy()
        p[-1] += tail[kept]
        q = _requantized(p_all, cumulative, kept)
        divergence = float(((p + _SMOOTHING) * np.log((p + _SMOOTHING) / (q + _SMOOTHING))).sum())
        if divergence < best_divergence:
            best, best_divergence = kept, divergence
    return best


def _requantized(p: npt.NDArray[np.float64], cumulative: npt.NDArray[np.float64], kept: int) -> npt.NDArray[np.float64]:
    """The first ``kept`` bins averaged on `_LEVELS` levels and spread over the bins again, ``[kept]``."""
    edges = np.linspace(0, kept, _LEVELS + 1)
    at_edges = np.interp(edges, np.arange(kept + 1), cumulative[: kept + 1])
    level_density = np.diff(at_edges) / (kept / _LEVELS)
    integral = np.concatenate([[0.0], np.cumsum(level_density) * (kept / _LEVELS)])
    spread = np.interp(np.arange(kept + 1), edges, integral)
    return np.asarray(np.diff(spread), np.float64)
