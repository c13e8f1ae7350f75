from __future__ import annotations

import numpy as np
import onnx
import pytest

from edgevision.parity import sqnr_db
from edgevision.pipeline.golden import run_graph
from edgevision_calibration.observe import observe
from edgevision_calibration.planning import make_plan
from edgevision_calibration.scheme import scheme_for
from edgevision_converters.canonical import canonicalize
from edgevision_converters.onnxruntime import convert
from edgevision_converters.target import ConversionRequest
from tests.conformance.nets import picture, tiny_net


@pytest.fixture(scope="module")
def graph():
    return canonicalize(tiny_net())


@pytest.fixture(scope="module")
def feed() -> np.ndarray:
    pixels = np.stack([picture(index) for index in range(16)])
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32) / np.float32(255)


@pytest.fixture(scope="module")
def plan(graph, feed):
    table = observe(graph, [feed[i : i + 1] for i in range(len(feed))])
    return make_plan(graph, table, scheme_for("onnxruntime"))


def test_fp32_is_the_canonical_graph_itself(graph, tmp_path):
    made = convert(ConversionRequest(graph, "fp32", None, tmp_path))
    assert made.files == {"model": ("engine/model.onnx", graph.to_bytes())}
    assert not made.tensor_names
    assert list(tmp_path.iterdir()) == []


def test_int8_is_q_dq_that_the_engine_runs_as_the_plan_says(graph, plan, feed, tmp_path):
    made = convert(ConversionRequest(graph, "int8", plan, tmp_path))
    model = onnx.load_from_string(made.files["model"][1])
    onnx.checker.check_model(model, full_check=True)
    kinds = [node.op_type for node in model.graph.node]
    assert "QuantizeLinear" in kinds
    assert "DequantizeLinear" in kinds
    float_weights = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    assert not {"stem_w", "branch_w", "head_w"} & float_weights, "a weight lies in the file twice"
    expected = run_graph(graph.to_bytes(), feed, exact=False)["logits"]
    found = run_graph(made.files["model"][1], feed, exact=False)["logits"]
    exact = run_graph(made.files["model"][1], feed, exact=True)["logits"]
    # 8 bits; measured 27 dB on this network
    assert sqnr_db(expected, found) > 20.0
    # integer kernels and Q/DQ in float: the same computation but for roundings
    assert sqnr_db(exact, found) > 25.0


def test_layers_are_found_under_the_names_given(graph, plan, tmp_path):
    made = convert(ConversionRequest(graph, "int8", plan, tmp_path))
    model = onnx.load_from_string(made.files["model"][1])
    outputs = {name for node in model.graph.node for name in node.output}
    assert set(made.tensor_names) == set(plan.activations)
    assert set(made.tensor_names.values()) <= outputs


def test_equal_plans_give_equal_bytes(graph, plan, tmp_path):
    first, second = (convert(ConversionRequest(graph, "int8", plan, tmp_path)) for _ in range(2))
    assert first.files == second.files
