from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from edgevision.errors import CalibrationError, UsageError
from edgevision_calibration.adaround import RoundingGraph, SoftRounding
from edgevision_calibration.observe import observe, open_session
from edgevision_calibration.planning import make_plan
from edgevision_calibration.reconstruction import ReconstructionConfig, reconstruct, split_blocks
from edgevision_calibration.scheme import SCHEMES
from edgevision_calibration.weights import along, weight_axis
from edgevision_converters.canonical import canonicalize
from edgevision_converters.qdq import quantize_dequantize
from tests.conformance.nets import picture, tiny_net

QUICK = ReconstructionConfig(pictures=16, steps=60, batch=8, crop=16)


def images_of(indices):
    return np.stack([picture(index) for index in indices]).astype(np.float32).transpose(0, 3, 1, 2) / 255.0


@pytest.fixture(scope="module")
def calibrated():
    graph = canonicalize(tiny_net())
    pictures = [image[None] for image in images_of(range(24))]
    return graph, observe(graph, pictures), pictures


def test_a_rounding_begins_at_the_weight_and_decides_for_a_neighbour():
    ratio = torch.tensor([0.2, 0.6, -1.7, 3.0, 126.9])
    rounding = SoftRounding(ratio)
    # the share is kept 1e-4 away from both integers
    torch.testing.assert_close(rounding.soft(), ratio, atol=2e-4, rtol=0)
    hard = rounding.hard()
    assert hard.tolist() == [0.0, 1.0, -2.0, 3.0, 127.0]
    rounding.logits.data[0] = 5.0
    assert rounding.hard()[0] == 1.0
    assert rounding.undecided(2.0).item() < SoftRounding(ratio).undecided(2.0).item()


def test_blocks_cover_the_graph_once_and_in_order(calibrated):
    graph, table, _ = calibrated
    plan = make_plan(graph, table, SCHEMES["onnxruntime"])
    blocks = split_blocks(graph, plan, layers=1)
    assert [node.name for block in blocks for node in block.nodes] == [node.name for node in graph.nodes]
    assert blocks[0].inputs == (graph.input_name,)
    assert blocks[-1].outputs == tuple(graph.output_names)
    for before, after in itertools.pairwise(blocks):
        assert set(after.inputs) <= set(before.outputs)
    # the residual keeps two tensors alive, so that no cut falls between its ends
    inside = next(block for block in blocks if any(node.name == "depthwise" for node in block.nodes))
    assert {"pointwise", "residual"} <= {node.name for node in inside.nodes}


def test_roundings_reach_every_engine_and_the_error_falls(calibrated):
    graph, table, pictures = calibrated
    plan = make_plan(graph, table, SCHEMES["openvino"], bias_correction=False)
    learned, learned_plan = reconstruct(graph, plan, pictures, config=QUICK)
    test = images_of(range(100, 124))
    expected = open_session(graph.to_bytes()).run(None, {"images": test})[0]

    def error(candidate, candidate_plan):
        model = quantize_dequantize(candidate, candidate_plan).SerializeToString()
        got = open_session(model, optimize=False).run(None, {"images": test})[0]
        return float(np.square(got - expected).mean() / np.square(expected).mean())

    assert error(learned, learned_plan) < error(graph, plan)
    assert learned_plan.graph_sha256 == learned.sha256
    assert learned_plan.calibration["method"] == "long"
    changed = 0
    for node in graph.nodes:
        if len(node.input) > 1 and node.input[1] in learned_plan.weights:
            scales = along(
                learned_plan.weights[node.input[1]], weight_axis(node), graph.initializers[node.input[1]].ndim
            )
            ratio = learned.initializers[node.input[1]] / scales
            # a float32 product divided again is off by its last bit alone
            np.testing.assert_allclose(ratio, np.round(ratio), atol=2e-5)
            original = graph.initializers[node.input[1]] / scales
            # up or down, nothing else; beyond ±127 weights are clipped
            inside = np.abs(original) <= 127
            assert np.abs(np.round(ratio) - original)[inside].max() < 1.0 + 1e-4
            changed += int((np.round(ratio) != np.clip(np.round(original), -127, 127)).sum())
    assert changed > 0


def test_the_same_call_gives_the_same_result(calibrated):
    graph, table, pictures = calibrated
    plan = make_plan(graph, table, SCHEMES["onnxruntime"])
    config = ReconstructionConfig(pictures=8, steps=3, batch=4)
    first, second = (reconstruct(graph, plan, pictures, config=config) for _ in range(2))
    assert first[0].sha256 == second[0].sha256
    assert first[1].to_json() == second[1].to_json()


def test_what_cannot_be_done_is_said(calibrated):
    graph, table, _ = calibrated
    plan = make_plan(graph, table, SCHEMES["ncnn"])
    with pytest.raises(CalibrationError, match="no calibration images"):
        reconstruct(graph, plan, [])
    with pytest.raises(UsageError, match="steps"):
        ReconstructionConfig(steps=0)


def test_a_depthwise_layer_that_stays_in_float_has_no_rounding(calibrated):
    graph, table, _ = calibrated
    rounding = RoundingGraph(graph, make_plan(graph, table, SCHEMES["ncnn"]))
    depthwise = next(node for node in rounding.nodes if node.name == "depthwise")
    assert not rounding.parameters_of([depthwise])["roundings"]
