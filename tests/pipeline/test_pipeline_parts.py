"""Golden tensors, the preprocess of a model, and the workspace."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgevision.data import open_dataset
from edgevision.data.base import Sample, evenly_spaced
from edgevision.errors import UsageError
from edgevision.parity import compare
from edgevision.pipeline.calibration import calibrate
from edgevision.pipeline.golden import COUNT, float_thresholds, golden_pixels, quantized_thresholds
from edgevision.pipeline.preprocessing import fit_preprocess
from edgevision.pipeline.workspace import Workspace, digest_of, digest_of_samples
from edgevision.preprocess import PRESETS, Preprocess
from edgevision_calibration.observe import observe
from edgevision_converters.canonical import canonicalize
from edgevision_converters.export import Source
from tests.conformance.nets import SIZE, tiny_net, write_pictures


@pytest.fixture(scope="module")
def graph():
    return canonicalize(tiny_net())


@settings(max_examples=25, deadline=None)
@given(size=st.tuples(st.integers(1, 70), st.integers(1, 70)), grey=st.booleans())
def test_golden_noise_fits_any_size_and_is_always_the_same(size, grey):
    preprocess = Preprocess(size, color="GRAY", mean=(0.0,), std=(1.0,)) if grey else Preprocess(size)
    pixels = golden_pixels(None, preprocess)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (COUNT, *size) if grey else (COUNT, *size, 3)
    np.testing.assert_array_equal(pixels, golden_pixels(None, preprocess))
    assert preprocess.normalize(pixels[0]).shape == (preprocess.channels, *size)
    assert len({one.tobytes() for one in pixels}) > 1


def test_golden_pictures_are_the_data_sets_spread_evenly(tmp_path):
    dataset = open_dataset(write_pictures(tmp_path, 20))
    preprocess = Preprocess((16, 24), "letterbox")
    pixels = golden_pixels(dataset, preprocess)
    assert pixels.shape == (8, 16, 24, 3)
    for row, index in ((0, 0), (7, 19)):
        with Image.open(tmp_path / f"{index:03d}.png") as image:
            np.testing.assert_array_equal(pixels[row], np.asarray(preprocess.geometry(image)))
    assert len(golden_pixels(open_dataset(str(tmp_path) + "[:3]"), preprocess)) == 3


@settings(max_examples=40, deadline=None)
@given(decibels=st.floats(10, 60), seed=st.integers(0, 1000))
def test_the_reference_itself_always_passes_its_thresholds(decibels, seed):
    rng = np.random.default_rng(seed)
    outputs = {"a": rng.normal(size=(8, 10)), "b": rng.normal(size=(8, 4, 4))}
    reference = {}
    for name, value in outputs.items():
        noise = rng.normal(size=value.shape)
        noise *= np.sqrt(np.square(value).sum() / np.square(noise).sum() / 10 ** (decibels / 10))
        reference[name] = value + noise
    thresholds = quantized_thresholds(outputs, reference)
    assert compare(outputs, reference, task="tensors", thresholds=thresholds["fp32"]).passed
    # an engine with twice the noise's power is at the edge, one with ten times is out
    worse = {name: outputs[name] + (reference[name] - outputs[name]) * np.sqrt(10.0) for name in outputs}
    assert not compare(outputs, worse, task="tensors", thresholds=thresholds["fp32"]).passed


def test_a_quantized_net_that_answers_noise_does_not_pass():
    rng = np.random.default_rng(0)
    outputs = {"a": rng.normal(size=(8, 100))}
    noise = {"a": rng.normal(size=(8, 100))}
    thresholds = quantized_thresholds(outputs, noise)
    assert not compare(outputs, noise, task="tensors", thresholds=thresholds["fp32"]).passed


def test_float_thresholds_are_stricter_for_fp32():
    fp32, fp16 = float_thresholds("fp32"), float_thresholds("fp16")
    assert fp32.cosine > fp16.cosine > 0.99
    assert fp32.sqnr_db > fp16.sqnr_db > 20.0


def test_presets_are_fitted_and_files_are_taken_as_they_are(graph, tmp_path):
    assert fit_preprocess("imagenet", None, graph) == PRESETS["imagenet"].with_size(SIZE, SIZE)
    own = Preprocess((SIZE, SIZE), mean=(0.5, 0.5, 0.5))
    assert fit_preprocess(own, None, graph) is own
    # what the source says is fitted too, and what the caller says goes before it
    assert fit_preprocess(None, own.with_size(64, 64), graph) == own
    assert fit_preprocess("unit", own, graph) == PRESETS["unit"].with_size(SIZE, SIZE)
    for wrong in (Preprocess((SIZE, SIZE + 1)), PRESETS["digits"]):
        with pytest.raises(UsageError, match=r"the network's input images is \[3, 32, 32\]"):
            fit_preprocess(wrong, None, graph)
    with pytest.raises(UsageError, match="the canonical graph is NCHW"):
        fit_preprocess(Preprocess((SIZE, SIZE), layout="NHWC"), None, graph)


def test_a_workspace_gives_back_what_it_was_given(graph, tmp_path):
    workspace = Workspace(tmp_path)
    assert workspace.find_graph(graph.sha256) is None
    assert workspace.find_calibration("key") is None
    workspace.keep_graph(graph)
    found = workspace.find_graph(graph.sha256)
    assert found is not None
    assert found.to_bytes() == graph.to_bytes()
    table = observe(graph, [np.random.default_rng(0).uniform(0, 1, (2, 3, SIZE, SIZE)).astype(np.float32)])
    workspace.keep_calibration("key", graph, table)
    again = workspace.find_calibration("key")
    assert again is not None
    assert again[0].sha256 == again[1].graph_sha256 == graph.sha256
    assert again[1].images == 2
    # a table whose graph has gone or was changed is of no use
    path = workspace.graph_path(graph.sha256)
    path.write_bytes(graph.with_metadata({"changed": "yes"}).to_bytes())
    assert workspace.find_graph(graph.sha256) is None
    assert workspace.find_calibration("key") is None


def test_digests_tell_values_and_pictures_apart(tmp_path):
    assert digest_of(1, "a", {"b": 2.0}) == digest_of(1, "a", {"b": 2.0})
    assert len({digest_of(1), digest_of("1"), digest_of([1]), digest_of(1, None), digest_of(1.5)}) == 5
    write_pictures(tmp_path, 2)
    one, two = Sample(tmp_path / "000.png", "0"), Sample(tmp_path / "001.png", "1")
    array = Sample(np.zeros((2, 2, 3), np.uint8), "2")
    digests = {digest_of_samples(samples) for samples in ([one], [two], [one, two], [two, one], [array], [])}
    assert len(digests) == 6
    before = digest_of_samples([one])
    (tmp_path / "000.png").write_bytes((tmp_path / "001.png").read_bytes())
    # the content counts, not the name
    assert digest_of_samples([one]) == digest_of_samples([two]) != before
    # the calibration pass will say what is wrong with a picture that is not there
    assert digest_of_samples([Sample(tmp_path / "gone.png", "3")])


class _Counted:
    """A data set that counts how often each sample is asked for."""

    def __init__(self, count: int) -> None:
        rng = np.random.default_rng(0)
        self.samples = [Sample(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8), str(i)) for i in range(count)]
        self.asked = np.zeros(count, int)
        self.name, self.classes, self.labels = "counted", (), None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        self.asked[index] += 1
        return self.samples[index]

    def __iter__(self):
        return (self[index] for index in range(len(self)))


@pytest.mark.parametrize("equalize", [True, False])
@pytest.mark.parametrize("count", [20, 80])
def test_calibration_runs_every_picture_once(graph, count, equalize):
    dataset = _Counted(count)
    source = Source(graph, "net", None, (), "tensors", "a test")
    _, table = calibrate(source, Preprocess((SIZE, SIZE)), evenly_spaced(dataset, None), equalize=equalize)
    assert table.images == count
    assert all(seen.pictures == count for seen in table.tensors.values())
    assert dataset.asked.tolist() == [1] * count
