from __future__ import annotations

import numpy as np
import pytest

from edgevision_calibration import factors
from edgevision_calibration.factors import kept_interval
from edgevision_calibration.samples import ChannelSamples

PIXELS = 1 << 20


def drawn(seed, signed):
    """Channels of long and short tails, each with one picture whose peak lies far out, and a dead one."""
    random = np.random.default_rng(seed)
    tails = np.repeat([0.25, 0.5, 1.0, 1.5], 4)
    values = random.normal(0, 1, (512, 16))
    values = (np.sign(values) * np.abs(values) ** tails).astype(np.float32)
    values[:, 15] = 0
    if not signed:
        values = np.maximum(values, 0)
    parts = values.reshape(8, 64, 16)
    lows, highs = parts.min(axis=1), parts.max(axis=1)
    highs[0] *= np.linspace(1, 5, 16)
    return ChannelSamples(values, lows, highs, parts.sum(axis=1), PIXELS, 64)


def cost(seen, low, high, end):
    """What it costs to cut all channels at ``end``: what is clipped, six times, and the steps of what is left."""
    beyond = np.square(np.maximum(seen.values - end, 0)).mean(axis=0)
    peaks = np.square(np.maximum(seen.highs - end, 0)).mean(axis=0) * 4 / PIXELS
    return 6 * np.maximum(beyond, peaks) + np.square((end - low) / 255) / 12 * seen.occupied


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("signed", [True, False])
def test_an_end_is_cut_where_that_costs_least_of_all_shares(seed, signed):
    seen = drawn(seed, signed)
    low, high = seen.low.astype(np.float64), seen.high.astype(np.float64)
    shares = factors._CLIPS
    costs = np.stack([cost(seen, low, high, low + (high - low) * share) for share in shares])
    best = factors._cut(seen.values, seen.highs, seen.pixels, low, high, seen.occupied)
    for channel in range(15):
        chosen = low[channel] + (high - low)[channel] * shares[costs[:, channel].argmin()]
        assert best[channel] == pytest.approx(chosen)
    # long tails are cut, and the dead channel has nothing to cut
    assert (best < 0.99 * high).any()
    assert best[15] == 0


def test_what_never_was_below_zero_keeps_zero():
    low, high = kept_interval(drawn(0, signed=False))
    assert (low == 0).all()
    assert (high[:15] > 0).all()
