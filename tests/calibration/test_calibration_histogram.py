from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevision.errors import CalibrationError
from edgevision_calibration.histogram import BINS, Histogram

# subnormal numbers lose digits when they are scaled: no activation is that small
numbers = st.floats(-1e6, 1e6, width=32, allow_nan=False, allow_subnormal=False)
batches_of_numbers = st.lists(st.lists(numbers, min_size=1, max_size=40), min_size=1, max_size=8)


def filled(batches):
    histogram = Histogram()
    for batch in batches:
        values = np.asarray(batch, np.float32)
        histogram.update(values, float(values.min()), float(values.max()))
    return histogram


def state(histogram):
    used = np.flatnonzero(histogram.counts)
    bins = {int(at + histogram.start): int(histogram.counts[at]) for at in used}
    return histogram.exponent, bins, histogram.low, histogram.high


@settings(max_examples=150, deadline=None)
@given(batches_of_numbers, st.randoms(use_true_random=False))
def test_neither_the_order_nor_the_batching_of_the_values_matters(batches, random):
    flat = [value for batch in batches for value in batch]
    random.shuffle(flat)
    assert state(filled(batches)) == state(filled([flat])) == state(filled([[value] for value in flat]))


@settings(max_examples=100, deadline=None)
@given(batches_of_numbers)
def test_each_value_is_counted_in_the_bin_that_holds_it(batches):
    histogram = filled(batches)
    values = np.asarray([value for batch in batches for value in batch], np.float32)
    exponent, bins, low, high = state(histogram)
    expected = {}
    for value in values.astype(np.float64):
        at = int(np.floor(value * 2.0**-exponent))
        expected[at] = expected.get(at, 0) + 1
    assert bins == expected
    assert (low, high) == (values.min(), values.max())
    assert histogram.total == len(values)
    # half a bin from the middle at most, and bins as fine as the greatest magnitude allows
    assert histogram.width <= 4 * max(abs(low), abs(high), 2.0**-80) / BINS * 2


@settings(max_examples=100, deadline=None)
@given(batches_of_numbers, batches_of_numbers)
def test_merged_histograms_are_the_histogram_of_both(first, second):
    merged = filled(first)
    merged.merge(filled(second))
    assert state(merged) == state(filled(first + second))


def test_merging_nothing_changes_nothing():
    histogram = filled([[1.0, 2.0]])
    before = state(histogram)
    histogram.merge(Histogram())
    assert state(histogram) == before


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(value):
    with pytest.raises(CalibrationError, match="NaN or infinite"):
        Histogram().update(np.asarray([1.0, value], np.float32), min(value, 1.0), max(value, 1.0))


def test_large_tensors_are_counted_piece_by_piece():
    values = np.random.default_rng(0).normal(0, 1, 200_000).astype(np.float32)
    assert state(filled([values])) == state(filled(np.array_split(values, 7)))
