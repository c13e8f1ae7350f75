from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevision.data.base import evenly_spaced
from edgevision.data.datasets import ArrayDataset
from edgevision.graph import Graph
from edgevision.pipeline.data_care import preprocess_findings
from edgevision.preprocess import PRESETS, Preprocess
from edgevision_calibration.diagnostics import (
    LEAST_PICTURES,
    PREPROCESS_PICTURES,
    PictureWatch,
    check_preprocess,
    diagnose,
)
from edgevision_calibration.observe import observe
from edgevision_calibration.table import PARTS, CalibrationTable, Digest, TensorStatistics
from edgevision_converters.canonical import canonicalize
from tests.conformance.nets import picture, tiny_net

UNIT = Preprocess(size=(32, 32))


@pytest.fixture(scope="module")
def graph() -> Graph:
    return canonicalize(tiny_net())


def pictures(count: int) -> list[np.ndarray]:
    return [UNIT.normalize(picture(index))[None] for index in range(count)]


def kinds(graph: Graph, batches: list[np.ndarray]) -> set[str]:
    watch = PictureWatch()
    table = observe(graph, watch.watch(batches), threads=1)
    return {finding.kind for finding in diagnose(table, graph, watch)}


def test_varied_pictures_raise_no_finding(graph):
    assert kinds(graph, pictures(48)) == set()


def test_too_few_pictures(graph):
    assert kinds(graph, pictures(LEAST_PICTURES - 1)) == {"too_few"}


def test_ranges_that_still_grow():
    model = tiny_net()
    # a ReLU6 would bound whatever comes after it
    clip = next(node for node in model.graph.node if node.op_type == "Clip")
    clip.op_type = "Relu"
    del clip.input[1:]
    # every picture has twice the contrast of the one before it: without the quarter that holds the last one, half of
    # the range is missing
    batches = [(batch * 2.0**index).astype(np.float32) for index, batch in enumerate(pictures(20))]
    assert "still_growing" in kinds(canonicalize(model), batches)


def test_copies_are_told(graph):
    few = pictures(6)
    rng = np.random.default_rng(0)
    batches = [few[index % 6] + rng.normal(0, 0.002, few[0].shape).astype(np.float32) for index in range(36)]
    assert "alike" in kinds(graph, batches)


def test_one_picture_again_and_again(graph):
    assert {"alike", "constant_output"} <= kinds(graph, pictures(1) * 20)


def test_a_constant_channel_is_named(graph):
    batches = pictures(20)
    for batch in batches:
        batch[:, 2] = 0.25
    watch = PictureWatch()
    table = observe(graph, watch.watch(batches), threads=1)
    found = {finding.kind: finding for finding in diagnose(table, graph, watch)}
    assert "channel 2 has one and the same value" in found["constant_input"].message


def test_grey_pictures_are_a_note(graph):
    # a preprocess's mean and std shift and scale the channels: still grey
    batches = [np.stack([batch[0, 0], batch[0, 0] * 2 - 1, batch[0, 0] / 3])[None] for batch in pictures(40)]
    watch = PictureWatch()
    table = observe(graph, watch.watch(batches), threads=1)
    found = {finding.kind: finding.severity for finding in diagnose(table, graph, watch)}
    assert found["grey_input"] == "note"


def test_findings_are_kept_with_the_table(graph, tmp_path):
    watch = PictureWatch()
    table = observe(graph, watch.watch(pictures(3)), threads=1)
    table.findings = [finding.to_dict() for finding in diagnose(table, graph, watch)]
    assert table.findings[0]["kind"] == "too_few"
    assert CalibrationTable.open(table.save(tmp_path)).findings == table.findings


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-100, 100, width=32), min_size=PARTS, max_size=24), st.integers(1, 5))
def test_growth_is_what_leaving_a_quarter_out_costs(values, batch):
    tensor = np.asarray(values, np.float32).reshape(-1, 1, 1, 1) * np.asarray([1.0, 0.5], np.float32).reshape(
        1, 2, 1, 1
    )
    seen = TensorStatistics.empty(2)
    for start in range(0, len(tensor), batch):
        seen.update(Digest.of(tensor[start : start + batch]))
    span = float(tensor.max() - tensor.min())
    if span == 0:
        assert seen.growth == 0
        return
    left = [tensor[np.arange(len(tensor)) % PARTS != part] for part in range(PARTS)]
    expected = 1 - np.mean([float(part.max()) - float(part.min()) for part in left]) / span
    # sums of a few float64 values
    assert seen.growth == pytest.approx(expected, abs=1e-6)


class Templates:
    """A classifier that knows its pictures, if they come as it was made for: logits are correlations with them."""

    def __init__(self, how: Preprocess) -> None:
        self.pixels = [picture(index) for index in range(PREPROCESS_PICTURES)]
        known = np.stack([how.normalize(pixels).ravel() for pixels in self.pixels])
        self.offset = known.mean(axis=0)
        self.known = (known - self.offset) / np.linalg.norm(known - self.offset, axis=1, keepdims=True)

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        return 0.3 * (batch.reshape(len(batch), -1) - self.offset) @ self.known.T


@pytest.mark.parametrize("right", [PRESETS["imagenet"].with_size(32, 32), UNIT], ids=["imagenet", "unit"])
def test_the_right_preprocess_is_not_doubted(right):
    classifier = Templates(right)
    assert check_preprocess(classifier, classifier.pixels, right) == []


def test_wrong_color_order_is_named():
    right = replace(UNIT, mean=(0.5,) * 3, std=(0.25,) * 3)
    classifier = Templates(right)
    found = check_preprocess(classifier, classifier.pixels, replace(right, color="BGR"))
    assert [finding.kind for finding in found] == ["color_order"]
    assert "RGB" in found[0].message


def test_wrong_scale_is_named():
    right = PRESETS["imagenet"].with_size(32, 32)
    classifier = Templates(right)
    found = check_preprocess(classifier, classifier.pixels, UNIT)
    assert [finding.kind for finding in found] == ["preprocess"]
    assert "ImageNet's mean and std" in found[0].message


def test_few_pictures_give_no_judgement():
    right = PRESETS["imagenet"].with_size(32, 32)
    classifier = Templates(right)
    assert check_preprocess(classifier, classifier.pixels[: LEAST_PICTURES - 1], UNIT) == []


def test_a_network_is_not_opened_for_too_few_pictures(graph, monkeypatch):
    def opened(*_: object, **__: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr("edgevision_calibration.observe.open_session", opened)
    images = np.stack([picture(index) for index in range(LEAST_PICTURES)])
    dataset = ArrayDataset("few", images, None, (), "few")
    assert preprocess_findings(graph, "classification", UNIT, evenly_spaced(dataset, LEAST_PICTURES - 1)) == []
    with pytest.raises(AssertionError, match="opened"):
        preprocess_findings(graph, "classification", UNIT, evenly_spaced(dataset, LEAST_PICTURES))


def test_copies_of_one_picture_give_no_judgement():
    right = PRESETS["imagenet"].with_size(32, 32)
    classifier = Templates(right)
    assert check_preprocess(classifier, classifier.pixels[:1] * PREPROCESS_PICTURES, UNIT) == []


@pytest.mark.data
def test_mobilenet_v2_is_judged_rightly(data_root):
    from edgevision.data import open_dataset
    from edgevision.data.base import Subset
    from edgevision_converters.export import open_source

    pytest.importorskip("torch")
    source = open_source("mobilenet_v2", weights=data_root / "weights" / "mobilenet_v2_imagenet.safetensors")
    right = source.preprocess
    samples = Subset(open_dataset(data_root / "imagenet-mini"), range(0, 480, 15))

    def judged(how: Preprocess) -> list[str]:
        return [finding.kind for finding in preprocess_findings(source.graph, "classification", how, samples)]

    assert judged(right) == []
    assert judged(replace(right, mean=(0.0,) * 3, std=(1.0,) * 3)) == ["preprocess"]
    assert judged(replace(right, scale=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)) == ["preprocess"]
    assert judged(replace(right, color="BGR")) == ["color_order"]
