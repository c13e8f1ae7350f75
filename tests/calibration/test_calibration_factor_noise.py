from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevision_calibration.factor_noise import TensorExtents, WeightMagnitudes, _Noises, least_noise


def problem(seed, size, *, signed, bound=np.inf, fixed=0):
    """A tensor of ``size`` free channels, ``fixed`` others, and weights that read it; channels of any size."""
    random = np.random.default_rng(seed)
    index = np.append(np.arange(size), np.full(fixed, -1))
    count = size + fixed
    above = np.exp(random.normal(0, 2, count))
    below = np.exp(random.normal(0, 2, count)) if signed else np.zeros(count)
    weight = np.exp(random.normal(0, 1, count))
    tensor = TensorExtents(index, above, below, weight, bound, above, below)
    magnitudes = np.abs(random.normal(0, 1, (5, count)))
    reader = WeightMagnitudes(index, magnitudes, np.exp(random.normal(0, 1, 5)), np.square(above))
    return tensor, reader


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.booleans(), st.integers(0, 2), st.sampled_from([np.inf, 1.0]))
def test_the_slope_is_that_of_the_noise(seed, signed, fixed, bound):
    tensor, reader = problem(seed, 6, signed=signed, fixed=fixed, bound=bound)
    noises = _Noises(np.zeros(6), [tensor], [reader])
    logs = np.random.default_rng(seed + 1).normal(0, 0.3, 6)
    total, slope = noises.at(logs)
    for channel in range(6):
        moved = np.eye(6)[channel] * 1e-5
        numeric = (noises.at(logs + moved)[0] - noises.at(logs - moved)[0]) / 2e-5
        # the truncation of a central difference is about 1e-10 of the noise, its rounding 1e-11 of it
        assert slope[channel] == pytest.approx(numeric, rel=1e-5, abs=1e-6 * total)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000))
def test_where_it_starts_does_not_change_the_noise(seed):
    tensor, reader = problem(seed, 5, signed=True)
    logs = np.random.default_rng(seed).normal(0, 1, 5)
    far, near = _Noises(np.zeros(5), [tensor], [reader]).at(logs), _Noises(logs, [tensor], [reader]).at(logs)
    # sixteenth powers of factors of e lose a few digits of float64
    assert far[0] == pytest.approx(near[0], rel=1e-9)
    np.testing.assert_allclose(far[1], near[1], rtol=1e-7, atol=1e-9 * near[0])


def test_the_noise_is_that_of_the_greatest_values():
    index = np.arange(3)
    tensor = TensorExtents(index, np.asarray([1.0, 2.0, 8.0]), np.zeros(3), np.ones(3), np.inf, np.ones(3), np.zeros(3))
    # the 16th norm of 1, 2 and 8 is 8 to seven digits; three channels, the step's square over 12 in each
    assert _Noises(np.zeros(3), [tensor], []).at(np.zeros(3))[0] == pytest.approx(3 * (8 / 255) ** 2 / 12, rel=1e-6)


def test_channels_of_a_tensor_alone_end_up_alike():
    tensor, _ = problem(3, 8, signed=False)
    start = np.zeros(8)
    logs = least_noise(start, [tensor], [], np.full(8, -np.inf), np.full(8, np.inf))
    reached = np.log(tensor.above) + logs
    before, after = (_Noises(start, [tensor], []).at(at)[0] for at in (start, logs))
    assert after < 0.5 * before
    assert np.ptp(reached) < np.ptp(np.log(tensor.above))


def test_factors_stay_within_their_bounds():
    tensor, reader = problem(5, 8, signed=True)
    least, greatest = np.full(8, -0.1), np.full(8, 0.2)
    logs = least_noise(np.zeros(8), [tensor], [reader], least, greatest)
    assert (logs >= least).all()
    assert (logs <= greatest).all()


def test_weights_that_are_all_zero_make_no_noise():
    tensor, reader = problem(1, 4, signed=False)
    dead = WeightMagnitudes(reader.index, np.zeros((5, 4)), reader.weight, reader.power)
    alone = _Noises(np.zeros(4), [tensor], []).at(np.zeros(4))
    both = _Noises(np.zeros(4), [tensor], [dead]).at(np.zeros(4))
    assert both[0] == pytest.approx(alone[0])
    np.testing.assert_allclose(both[1], alone[1])
