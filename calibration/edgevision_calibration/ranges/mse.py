"""The interval with the least mean squared quantization error."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgevision_calibration.histogram import Histogram
from edgevision_calibration.ranges.minmax import minmax_range

_FRACTIONS = np.linspace(0.2, 1.0, 81)
# candidates that are tried together: their errors stay in the processor's cache
_TOGETHER = 16


def mse_range(histogram: Histogram, *, symmetric: bool) -> tuple[float, float]:
    """The clipping range that minimises E[(x − Q(x))²] over the histogram.

    Exhaustive over 81 fractions of the greatest magnitude where ``symmetric`` or where all values have one
    sign; else the two ends are refined in turn until neither moves, beginning with everything seen.

    Source: optimal clipping by squared error ("OMSE"): Choukroun et al., Low-bit Quantization of Neural
    Networks for Efficient Inference, arXiv 1902.06822, section 3, eq. 4, on a histogram instead of samples.
    """
    low, high = minmax_range(histogram, symmetric=symmetric)
    used = histogram.counts > 0
    values, weights = histogram.centers[used], histogram.counts[used].astype(np.float64)
    if high <= low:
        return low, high
    if symmetric:
        errors = _errors(values, weights, -high * _FRACTIONS, high * _FRACTIONS, levels=254)
        best = float(_FRACTIONS[errors.argmin()])
        return low * best, high * best
    lows, highs = low * _FRACTIONS, high * _FRACTIONS
    at_low, at_high = len(_FRACTIONS) - 1, len(_FRACTIONS) - 1
    # where the other end was when an end was last found: as long as it stays there the answer is the same
    low_of, high_of = -1, -1
    for _ in range(8):
        if high > 0 and high_of != at_low:
            high_of = at_low
            at_high = int(_errors(values, weights, np.full_like(highs, lows[at_low]), highs, levels=255).argmin())
        if low >= 0 or low_of == at_high:
            break
        low_of = at_high
        at_low = int(_errors(values, weights, lows, np.full_like(lows, highs[at_high]), levels=255).argmin())
    return float(lows[at_low]), float(highs[at_high])


def _errors(
    values: npt.NDArray[np.float64],
    weights: npt.NDArray[np.float64],
    lows: npt.NDArray[np.float64],
    highs: npt.NDArray[np.float64],
    *,
    levels: int,
) -> npt.NDArray[np.float64]:
    """Weighted squared error of each candidate range, ``[candidates]``."""
    steps = (highs - lows) / levels
    parts = [slice(first, first + _TOGETHER) for first in range(0, len(steps), _TOGETHER)]
    return np.concatenate([_errors_of(values, weights, steps[part], lows[part], highs[part]) for part in parts])


def _errors_of(
    values: npt.NDArray[np.float64],
    weights: npt.NDArray[np.float64],
    steps: npt.NDArray[np.float64],
    lows: npt.NDArray[np.float64],
    highs: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    # zero is on the grid: x is rounded to a multiple of the step, then clipped; one array for all of it
    error = values / steps[:, None]
    np.rint(error, out=error)
    error *= steps[:, None]
    np.clip(error, lows[:, None], highs[:, None], out=error)
    error -= values
    np.square(error, out=error)
    return np.asarray(error @ weights, np.float64)
