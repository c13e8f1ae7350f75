"""What a picture spans on average."""

from __future__ import annotations

from edgevision_calibration.histogram import Histogram
from edgevision_calibration.ranges.minmax import minmax_range


def moving_average_range(histogram: Histogram, *, symmetric: bool) -> tuple[float, float]:
    """Least and greatest value of a picture, averaged over the pictures: one odd picture does not decide.

    All pictures count alike, so that the result does not depend on their order, as it does with exponential
    weights. A histogram that was told of no pictures keeps everything it saw.

    Source: B. Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference, arXiv 1712.05877, section 3.1 (there exponentially weighted, during training).
    """
    low, high = minmax_range(histogram, symmetric=False)
    if histogram.pictures:
        low, high = max(low, min(histogram.mean_low, 0.0)), min(high, max(histogram.mean_high, 0.0))
    if symmetric:
        high = max(-low, high)
        low = -high
    return low, high
