"""The long method: what it learns, where it goes on, and which nets only their blocks learn."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from onnx import helper

from edgevision.data import batches, evenly_spaced, open_dataset
from edgevision.parity import sqnr_db
from edgevision.pipeline import long_method
from edgevision.pipeline.calibration import calibrate
from edgevision.pipeline.golden import run_graph
from edgevision.pipeline.long_method import learn_long
from edgevision.preprocess import PRESETS
from edgevision_calibration import reconstruction
from edgevision_calibration.planning import make_plan
from edgevision_calibration.qat import train as qat_train
from edgevision_calibration.scheme import scheme_for
from edgevision_converters.canonical import canonicalize
from edgevision_converters.export import Source
from edgevision_converters.qdq import quantize_dequantize
from tests.conformance.nets import tiny_net

PREPROCESS = PRESETS["unit"].with_size(32, 32)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Few steps for each block."""
    whole = reconstruction.ReconstructionConfig
    monkeypatch.setattr(
        reconstruction, "ReconstructionConfig", lambda seed: whole(pictures=16, steps=8, batch=8, crop=8, seed=seed)
    )


@pytest.fixture(scope="module")
def digits():
    return open_dataset("digits", split="train")


@pytest.fixture(scope="module")
def calibrated(digits):
    source = Source(canonicalize(tiny_net()), "net", PREPROCESS, (), "classification", "a test")
    graph, table = calibrate(source, PREPROCESS, evenly_spaced(digits, 64))
    return graph, make_plan(graph, table, scheme_for("openvino"), precise=False)


def answers(model, pictures):
    return next(iter(run_graph(model, pictures, exact=True).values()))


def decibels(graph, learned, pictures):
    made = answers(quantize_dequantize(*learned).SerializeToString(), pictures)
    return sqnr_db(answers(graph.to_bytes(), pictures), made)


def assert_same(first, second):
    assert first[1].to_json() == second[1].to_json()
    for name, array in first[0].initializers.items():
        np.testing.assert_array_equal(array, second[0].initializers[name])


def test_the_whole_net_learns_what_its_blocks_could_not(calibrated, digits, tmp_path, monkeypatch):
    graph, plan = calibrated
    # steps so coarse that there is something to learn, and that steps which learn could make finer
    coarse = {name: replace(quant, scale=8 * quant.scale) for name, quant in plan.activations.items()}
    plan = replace(plan, activations=coarse)
    monkeypatch.setattr(long_method, "_STEP_LR", 0.01)
    samples = evenly_spaced(digits, 120)
    tuned = learn_long(graph, plan, PREPROCESS, samples, tmp_path / "tuned")
    assert tuned[1].calibration["tuning"]["kept_epoch"] > 0
    monkeypatch.setattr(long_method, "_LEAST_PICTURES", 121)
    blocks = learn_long(graph, plan, PREPROCESS, samples, tmp_path / "blocks")
    assert "tuning" not in blocks[1].calibration
    others = np.concatenate([batch for batch, _ in batches(open_dataset("digits", split="test"), PREPROCESS, 64)])
    assert decibels(graph, tuned, others) > decibels(graph, blocks, others) + 0.2
    assert decibels(graph, blocks, others) > decibels(graph, (graph, plan), others)


def test_interrupted_tuning_goes_on_and_ends_the_same(calibrated, digits, tmp_path, monkeypatch):
    graph, plan = calibrated
    samples = evenly_spaced(digits, 48)
    expected = learn_long(graph, plan, PREPROCESS, samples, tmp_path / "whole")

    begun = []
    original = qat_train._Run.train_epoch

    def interrupted(self, progress, bar):
        begun.append(progress.epoch)
        if len(begun) == 4:
            raise KeyboardInterrupt
        original(self, progress, bar)

    monkeypatch.setattr(qat_train._Run, "train_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        learn_long(graph, plan, PREPROCESS, samples, tmp_path / "broken")

    assert_same(learn_long(graph, plan, PREPROCESS, samples, tmp_path / "broken"), expected)
    assert begun == [0, 1, 2, 3, *range(3, long_method._EPOCHS)]

    # and what is finished is not done again
    def must_not_run(*_):
        raise AssertionError("it learned once already")

    monkeypatch.setattr(qat_train._Run, "train_epoch", must_not_run)
    assert_same(learn_long(graph, plan, PREPROCESS, samples, tmp_path / "broken"), expected)
    assert not list(tmp_path.rglob("state.safetensors"))


def test_half_written_results_are_made_again(calibrated, digits, tmp_path):
    graph, plan = calibrated
    samples = evenly_spaced(digits, 40)
    expected = learn_long(graph, plan, PREPROCESS, samples, tmp_path)
    (kept,) = tmp_path.glob("*/plan.json")
    values = json.loads(kept.read_text())
    kept.write_text(json.dumps({**values, "graph_sha256": "0" * 64}))
    assert_same(learn_long(graph, plan, PREPROCESS, samples, tmp_path), expected)


def test_large_nets_learn_from_fewer_pictures_at_a_time(calibrated, digits, tmp_path, monkeypatch):
    graph, plan = calibrated
    values = long_method._values(graph)
    assert values > np.prod(graph.shapes[graph.nodes[0].output[0]][1:])
    monkeypatch.setattr(long_method, "_MOST_VALUES", 3 * values + 1)
    monkeypatch.setattr(long_method, "_EPOCHS", 1)
    learned = learn_long(graph, plan, PREPROCESS, evenly_spaced(digits, 40), tmp_path)
    assert learned[1].calibration["tuning"]["batch_size"] == 3


def test_a_net_that_decodes_its_outputs_stays_as_its_blocks_learned_it(digits, tmp_path):
    model = tiny_net()
    model.graph.node.append(helper.make_node("Sigmoid", [model.graph.output[0].name], ["scores"], "decode"))
    model.graph.output[0].name = "scores"
    decoded = canonicalize(model)
    source = Source(decoded, "net", PREPROCESS, (), "tensors", "a test")
    treated, table = calibrate(source, PREPROCESS, evenly_spaced(digits, 32))
    plan = make_plan(treated, table, scheme_for("openvino"), precise=False)
    learned = learn_long(treated, plan, PREPROCESS, evenly_spaced(digits, 40), tmp_path)
    assert learned[1].calibration["method"] == "long"
    assert "tuning" not in learned[1].calibration


def test_pictures_are_mirrored_by_chance_and_the_same_ones_in_every_call():
    batch = np.arange(8 * 3 * 2 * 5, dtype=np.float32).reshape(8, 3, 2, 5)
    first, second = (long_method._mirrored(batch, np.random.default_rng(4)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    turned = [bool((made == given[..., ::-1]).all()) for made, given in zip(first, batch, strict=True)]
    kept = [bool((made == given).all()) for made, given in zip(first, batch, strict=True)]
    assert any(turned)
    assert any(kept)
    assert all(one != other for one, other in zip(turned, kept, strict=True))
