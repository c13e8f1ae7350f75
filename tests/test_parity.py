from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgevision.bundle import GOLDEN, Bundle, Manifest, Thresholds, golden_bytes
from edgevision.errors import BundleError
from edgevision.parity import MAX_DB, compare, cosine, sqnr_db, top1_agreement, verify, verify_session
from edgevision.preprocess import Preprocess
from edgevision.runtime.backend import BACKENDS
from edgevision.runtime.session import Session
from edgevision.runtime.tensors import TensorSpec

shapes = hnp.array_shapes(min_dims=1, max_dims=3, max_side=6)
floats = st.floats(-1e6, 1e6, width=32).map(lambda value: 0.0 if abs(value) < 1e-6 else value)
arrays = hnp.arrays(np.float32, shapes, elements=floats)
pairs = shapes.flatmap(
    lambda shape: st.tuples(
        hnp.arrays(np.float32, shape, elements=floats), hnp.arrays(np.float32, shape, elements=floats)
    )
)


@settings(max_examples=100, deadline=None)
@given(pair=pairs, scale=st.floats(0.01, 100.0))
def test_cosine_is_symmetric_bounded_and_blind_to_scale(pair, scale):
    a, b = pair
    found = cosine(a, b)
    assert -1.0 <= found <= 1.0
    assert found == pytest.approx(cosine(b, a), abs=1e-12)
    # float64 products of float32 values: 1e-16 times their number; the scale itself rounds
    assert cosine(a.astype(np.float64) * scale, b) == pytest.approx(found, abs=1e-9)
    assert cosine(-a, b) == pytest.approx(-found, abs=1e-12) or not (a.any() or b.any())


@settings(max_examples=100, deadline=None)
@given(a=arrays)
def test_a_tensor_is_itself(a):
    assert cosine(a, a) == pytest.approx(1.0, abs=1e-12)
    assert sqnr_db(a, a) == MAX_DB
    assert top1_agreement(a, a) == 1.0
    found = compare({"x": a}, {"x": a.copy()}, task="classification", thresholds=Thresholds(1.0 - 1e-9, 100.0, 1.0))
    assert found.passed
    assert found.max_difference == 0.0


@settings(max_examples=100, deadline=None)
@given(a=arrays, decibels=st.floats(-60.0, 100.0))
def test_noise_of_a_known_power_has_its_sqnr(a, decibels):
    assume(np.abs(a).max() > 1e-3)
    signal = a.astype(np.float64)
    noise = np.ones_like(signal) * np.sqrt(np.square(signal).mean() / 10.0 ** (decibels / 10.0))
    # 1e-16 of a sum beside noise of 1e-5 of it: 1e-6 dB
    assert sqnr_db(signal, signal + noise) == pytest.approx(decibels, abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(pair=pairs)
def test_sqnr_is_bounded_and_less_noise_never_lowers_it(pair):
    a, b = (array.astype(np.float64) for array in pair)
    whole, half = sqnr_db(a, b), sqnr_db(a, a + (b - a) / 2)
    assert -MAX_DB <= whole <= MAX_DB
    assert half >= whole - 1e-9


def test_the_edges_of_the_metrics():
    zero, one = np.zeros(3), np.ones(3)
    assert cosine(zero, zero) == 1.0
    assert cosine(zero, one) == cosine(one, zero) == 0.0
    assert cosine(one, -one) == pytest.approx(-1.0)
    assert sqnr_db(zero, zero) == MAX_DB
    assert sqnr_db(zero, one) == -MAX_DB
    assert sqnr_db(one, zero) == pytest.approx(0.0)
    assert sqnr_db(one, 0.9 * one) == pytest.approx(20.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_unlike_everything(value):
    good, bad = np.ones((1, 3), np.float32), np.float32([[1.0, value, 1.0]])
    for a, b in ((good, bad), (bad, good), (bad, bad)):
        assert cosine(a, b) == -1.0
        assert sqnr_db(a, b) == -MAX_DB
        found = compare({"x": a}, {"x": b}, task="tensors")
        assert not found.passed
        assert found.max_difference is None


def test_agreement_counts_rows():
    expected = np.float32([[1, 2, 3], [3, 2, 1], [0, 9, 0], [5, 5, 6]])
    actual = expected.copy()
    actual[3] = [7, 5, 6]
    assert top1_agreement(expected, actual) == 0.75
    assert top1_agreement(expected[..., None, None], actual[..., None, None]) == 0.75


def test_the_worst_output_counts():
    expected = {"a": np.float32([[1, 0]]), "b": np.float32([[1, 1]])}
    actual = {"b": np.float32([[1, -1]]), "a": np.float32([[1, 0]])}
    found = compare(expected, actual, task="tensors")
    assert found.cosine == pytest.approx(0.0)
    assert found.max_difference == 2.0
    assert found.top1_agreement is None
    assert found.passed
    # unsigned integers do not wrap around
    assert compare({"a": np.uint8([[1]])}, {"a": np.uint8([[2]])}, task="tensors").max_difference == 1.0


@pytest.mark.parametrize(
    ("thresholds", "passed"),
    [
        (Thresholds(0.9, 10.0, 0.5), True),
        (Thresholds(0.9999, 10.0, 0.5), False),
        (Thresholds(0.9, 40.0, 0.5), False),
        (Thresholds(0.9, 10.0, 0.6), False),
        (None, True),
    ],
)
def test_every_threshold_must_hold(thresholds, passed):
    expected = np.float32([[1.0, 1.1], [2.0, 1.0]])
    actual = np.float32([[1.1, 1.0], [2.0, 1.0]])  # cosine 0.9987, 26 dB less …, half of the answers
    found = compare({"x": expected}, {"x": actual}, task="classification", thresholds=thresholds)
    assert found.top1_agreement == 0.5
    assert found.passed is passed
    assert found.thresholds == thresholds


def test_a_missing_output_or_another_shape_is_a_bundle_error():
    expected = {"x": np.zeros((2, 3))}
    with pytest.raises(BundleError, match=r"output 'x': golden shape \[2, 3\], the engine gave nothing"):
        compare(expected, {}, task="tensors")
    with pytest.raises(BundleError, match=r"the engine gave \[3, 2\]"):
        compare(expected, {"x": np.zeros((3, 2))}, task="tensors")


class Doubling:
    """An engine that doubles the mean of every channel; ``gain`` and ``nan`` make it depart."""

    version = "1"
    gain = 2.0

    def __init__(self, bundle, options):
        self.closed = False

    def infer(self, feed):
        return {"logits": (feed["images"].mean((2, 3)) * self.gain).astype(np.float32)}

    def close(self):
        self.closed = True


@pytest.fixture
def make(monkeypatch):
    monkeypatch.setitem(BACKENDS._entries, "doubling", f"{__name__}:Doubling")
    monkeypatch.setattr(Doubling, "gain", 2.0)
    # this very module, whatever pytest calls it
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Doubling.__module__])

    def maker(groups=None, **thresholds):
        spec = TensorSpec("images", "float32", (None, 3, 4, 4))
        manifest = Manifest(
            "small", "classification", "doubling", "fp32", (spec,), (TensorSpec("logits", "float32", (None, 3)),),
            Preprocess((4, 4)), {"model": "m"}, thresholds=thresholds,
        )  # fmt: skip
        pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
        feed = np.stack([manifest.preprocess.normalize(one) for one in pixels])
        outputs = Doubling(None, None).infer({"images": feed})
        groups = {"pixels": {"images": pixels}, "outputs": outputs} if groups is None else groups
        return Bundle(manifest, {"m": b"", GOLDEN: golden_bytes(groups)})

    return maker


def test_verification_compares_with_fp32_and_with_the_reference(make, monkeypatch):
    strict = Thresholds(0.999, 60.0, 1.0)
    good = make(fp32=strict, reference=strict)
    found = verify(good)
    assert found.passed
    assert found.reference is None
    assert (found.n, found.engine) == (5, "doubling 1")
    both = make(
        {"pixels": {"images": _pixels()}, "outputs": _outputs(1.0), "reference": _outputs(1.1)},
        fp32=Thresholds(0.99, 15.0),
        reference=strict,
    )
    found = verify(both)
    # within what FP32 allows, and too far from the reference
    assert found.fp32.passed
    assert found.reference is not None
    assert not found.reference.passed
    assert not found.passed
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert {"passed", "cosine", "sqnr_db"} <= set(values)
    assert values["cosine"] == found.fp32.cosine
    monkeypatch.setattr(Doubling, "gain", np.nan)
    json.dumps(verify(good).to_dict(), allow_nan=False)
    assert not verify(good).passed


def _pixels():
    return np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)


def _outputs(factor):
    feed = np.stack([Preprocess((4, 4)).normalize(one) for one in _pixels()])
    return {"logits": (feed.mean((2, 3)) * 2.0 * factor).astype(np.float32)}


def test_the_bundles_own_thresholds_decide(make, monkeypatch):
    bundle = make(fp32=Thresholds(0.99, 30.0))
    monkeypatch.setattr(Doubling, "gain", 2.02)  # 40 dB
    assert verify(bundle).passed
    monkeypatch.setattr(Doubling, "gain", 2.2)  # 20 dB
    assert not verify(bundle).passed
    relaxed = Bundle(
        replace(bundle.manifest, thresholds={"fp32": Thresholds(0.99, 15.0)}),
        {name: bundle.read(name) for name in bundle.files},
    )
    assert verify(relaxed).passed


@pytest.mark.parametrize(
    "groups",
    [
        {},
        {"outputs": {"logits": np.zeros((1, 3), np.float32)}},
        {"pixels": {"images": np.zeros((1, 4, 4, 3), np.uint8)}},
        {"pixels": {"other": np.zeros((1, 4, 4, 3), np.uint8)}, "outputs": {"logits": np.zeros((1, 3), np.float32)}},
        {"inputs": {"images": np.zeros((0, 3, 4, 4), np.float32)}, "outputs": {"logits": np.zeros((0, 3), np.float32)}},
        {"pixels": {"images": np.zeros((1, 4, 4, 3), np.uint8)}, "outputs": {"logits": np.zeros((2, 3), np.float32)}},
        {"pixels": {"images": np.zeros((1, 4, 4, 3), np.uint8)}, "outputs": {"other": np.zeros((1, 3), np.float32)}},
    ],
)
def test_golden_tensors_that_do_not_fit_are_a_bundle_error(make, groups):
    with Session(make(groups)) as session, pytest.raises(BundleError):
        verify_session(session)
