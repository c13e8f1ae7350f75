from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgevision.errors import CalibrationError
from edgevision.parity import sqnr_db
from edgevision_calibration.observe import activated, observe, open_session
from edgevision_calibration.plan import ActivationQuant
from edgevision_calibration.planning import make_plan
from edgevision_calibration.scheme import scheme_for
from edgevision_calibration.sensitivity import Sensitivity, macs, measure_sensitivity, only, quantized_nodes, unranked
from edgevision_converters.canonical import canonicalize
from edgevision_converters.qdq import quantize_dequantize
from tests.conformance.nets import picture, tiny_net


@pytest.fixture(scope="module")
def graph():
    return canonicalize(tiny_net())


@pytest.fixture(scope="module")
def batches():
    return [np.moveaxis(picture(index), -1, 0)[None].astype(np.float32) / 255 for index in range(16)]


@pytest.fixture(scope="module")
def plan(graph, batches):
    return make_plan(graph, observe(graph, batches, threads=1), replace(scheme_for("openvino"), stem=None))


@pytest.fixture(scope="module")
def result(graph, plan, batches):
    return measure_sensitivity(graph, plan, batches[:8], quantize_dequantize, threads=1)


def test_every_quantized_layer_is_ranked(graph, plan, result):
    assert {layer.node for layer in result.layers} == {node.name for node in quantized_nodes(graph, plan)}
    assert len(result.layers) == 5
    ratios = [layer.sqnr_db for layer in result.layers]
    assert ratios == sorted(ratios)
    # shares are quotients of float64 sums
    assert sum(layer.share for layer in result.layers) == pytest.approx(1.0, abs=1e-9)
    assert result.pictures == 8
    assert result.sqnr_db < ratios[0] + 3.0, "all layers together cannot be much better than the worst alone"


def test_a_layers_figure_is_that_of_its_plan_alone(graph, plan, result, batches):
    worst = next(node for node in graph.nodes if node.name == result.layers[0].node)
    model = quantize_dequantize(graph, only(graph, plan, worst)).SerializeToString()
    sessions = open_session(graph.to_bytes(), threads=1), open_session(model, threads=1, optimize=False)
    expected, made = (
        np.concatenate([session.run(None, {"images": batch})[0] for batch in batches[:8]]) for session in sessions
    )
    # the integer kernel rounds its bias and output otherwise than the reference, by less than half of its noise
    assert result.layers[0].sqnr_db == pytest.approx(sqnr_db(expected, made), abs=3.0)


@pytest.mark.parametrize("harmed", ["depthwise", "branch", "head"])
def test_a_harmed_layer_is_found(graph, plan, batches, harmed):
    node = next(node for node in graph.nodes if node.name == harmed)
    quant = plan.activations[node.input[0]]
    coarse = ActivationQuant(quant.scale * 24, quant.zero_point // 24)
    worse = replace(plan, activations={**plan.activations, node.input[0]: coarse})
    found = measure_sensitivity(graph, worse, batches[:4], quantize_dequantize, threads=1)
    # the layer that makes the tensor is charged with it as well, and may come out worse by its own noise
    maker = {other.node for other in found.layers if _makes(graph, other.node, str(node.input[0]))}
    assert {layer.node for layer in found.layers[: 1 + len(maker)]} == {harmed} | maker


def _makes(graph, name, tensor):
    return activated(graph, next(node for node in graph.nodes if node.name == name)) == tensor


def test_two_measurements_agree(graph, plan, batches, result):
    assert measure_sensitivity(graph, plan, batches[:8], quantize_dequantize, threads=1) == result


def test_plain_values_come_back(result):
    assert Sensitivity.from_dict(result.to_dict()) == result


def test_multiply_accumulates(graph):
    counts = {node.name: macs(graph, node) for node in graph.nodes}
    assert counts["stem"] == 16 * 16 * 16 * 3 * 9
    assert counts["depthwise"] == 16 * 16 * 16 * 9
    assert counts["head"] == 6 * 32
    assert counts["residual"] == 0


def test_the_plan_of_one_layer_holds_its_own_tensors_alone(graph, plan):
    node = next(node for node in graph.nodes if node.name == "branch")
    part = only(graph, plan, node)
    assert set(part.weights) == {node.input[1]}
    assert node.input[0] in part.activations
    assert set(part.biases) <= {"branch"}
    assert [other.name for other in quantized_nodes(graph, part)] == ["branch"]
    assert [layer.node for layer in unranked(graph, part)] == ["branch"]


def test_nothing_to_measure_is_refused(graph, plan, batches):
    with pytest.raises(CalibrationError, match="no pictures"):
        measure_sensitivity(graph, plan, [], quantize_dequantize)
    everything = {node.name: "asked for" for node in graph.nodes}
    with pytest.raises(CalibrationError, match="quantizes no layer"):
        measure_sensitivity(graph, replace(plan, float_ops=everything), batches[:1], quantize_dequantize)
