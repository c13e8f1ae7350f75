from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevision.errors import UsageError
from edgevision_calibration.histogram import Histogram
from edgevision_calibration.ranges import RANGE_METHODS
from edgevision_calibration.ranges.entropy import entropy_range
from edgevision_calibration.ranges.minmax import minmax_range
from edgevision_calibration.ranges.mse import mse_range
from edgevision_calibration.ranges.percentile import percentile_range

METHODS = ["minmax", "percentile", "mse", "entropy"]


def histogram_of(values):
    histogram = Histogram()
    values = np.asarray(values, np.float32)
    histogram.update(values, float(values.min()), float(values.max()))
    return histogram


def error(histogram, low, high, levels):
    """Mean squared rounding and clipping error over the histogram, zero being on the grid."""
    step = (high - low) / levels
    if step == 0:
        return float(np.average(np.square(histogram.centers), weights=histogram.counts))
    quantized = np.clip(np.round(histogram.centers / step) * step, low, high)
    return float(np.average(np.square(quantized - histogram.centers), weights=histogram.counts))


@st.composite
def samples(draw):
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    values = draw(st.sampled_from(["normal", "laplace", "relu", "negative", "outliers", "constant", "zero"]))
    size = draw(st.integers(1, 3000))
    scale = 10.0 ** draw(st.integers(-4, 4))
    drawn = {
        "normal": rng.normal(0.3, 1, size),
        "laplace": rng.laplace(0, 1, size),
        "relu": np.maximum(rng.normal(0, 1, size), 0),
        "negative": -np.abs(rng.normal(0, 1, size)) - 0.1,
        "outliers": np.append(rng.normal(0, 1, size), [300.0, -40.0]),
        "constant": np.full(size, 0.7),
        "zero": np.zeros(size),
    }[values]
    return (drawn * scale).astype(np.float32)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=25, deadline=None)
@given(values=samples(), symmetric=st.booleans())
def test_every_range_holds_zero_and_nothing_that_was_not_seen(method, values, symmetric):
    histogram = histogram_of(values)
    low, high = RANGE_METHODS.resolve(method)(histogram, symmetric=symmetric)
    assert low <= 0 <= high
    widest = minmax_range(histogram, symmetric=symmetric)
    assert widest[0] <= low
    assert high <= widest[1]
    if symmetric:
        assert low == -high
    if values.any():
        assert high > low


@settings(max_examples=60, deadline=None)
@given(samples(), st.booleans())
def test_the_range_of_least_squared_error_is_no_worse_than_the_others(values, symmetric):
    histogram = histogram_of(values)
    levels = 254 if symmetric else 255
    best = error(histogram, *mse_range(histogram, symmetric=symmetric), levels)
    widest = error(histogram, *minmax_range(histogram, symmetric=symmetric), levels)
    assert best <= widest * (1 + 1e-9)


def test_min_max_is_what_was_seen():
    histogram = histogram_of([-1.0, 0.5, 3.0])
    assert minmax_range(histogram, symmetric=False) == (-1.0, 3.0)
    assert minmax_range(histogram, symmetric=True) == (-3.0, 3.0)
    assert minmax_range(histogram_of([2.0, 3.0]), symmetric=False) == (0.0, 3.0)


def test_a_lone_outlier_is_clipped_where_its_share_counts():
    values = np.append(np.random.default_rng(0).normal(0, 1, 100_000), [1000.0])
    histogram = histogram_of(values)
    assert percentile_range(histogram, symmetric=False)[1] < 10
    assert entropy_range(histogram, symmetric=False)[1] < 300
    assert minmax_range(histogram, symmetric=False)[1] == 1000.0


def test_a_percentile_leaves_out_what_it_says():
    values = np.random.default_rng(1).uniform(-1, 1, 100_000).astype(np.float32)
    histogram = histogram_of(values)
    for percentile in (99.0, 90.0):
        low, high = percentile_range(histogram, symmetric=False, percentile=percentile)
        outside = np.mean((values < low) | (values > high))
        # the cut is made at a bin's edge: a 1,024th of the range at either end
        assert outside == pytest.approx(1 - percentile / 100, abs=0.003)
        low, high = percentile_range(histogram, symmetric=True, percentile=percentile)
        assert np.mean(np.abs(values) > high) == pytest.approx(1 - percentile / 100, abs=0.003)


def test_an_unknown_method_is_answered_with_those_there_are():
    with pytest.raises(UsageError, match="mse"):
        RANGE_METHODS.resolve("msee")
