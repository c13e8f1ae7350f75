from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgevision.parity import sqnr_db
from edgevision.pipeline.golden import run_graph
from edgevision_calibration.observe import observe, open_session
from edgevision_calibration.planning import make_plan
from edgevision_calibration.scheme import scheme_for
from edgevision_converters.canonical import canonicalize
from edgevision_converters.onnxruntime import convert, flatten_softmax, keep_pools_float
from edgevision_converters.qdq import quantize_dequantize
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
    assert plan.weights
    assert not set(plan.weights) & float_weights, "a weight lies in the file twice"
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


def test_a_pooling_behind_a_float_layer_stays_in_float():
    # ONNX Runtime would otherwise round before it and pool bytes, which takes 14 times the time
    rng = np.random.default_rng(0)
    weights = {
        "stem_w": rng.normal(0, 0.3, (16, 3, 3, 3)),
        "wide_w": rng.normal(0, 0.1, (64, 16, 3, 3)),
        "next_w": rng.normal(0, 0.1, (64, 64, 1, 1)),
    }
    nodes = [
        helper.make_node("Conv", ["images", "stem_w"], ["stem"], "stem", pads=[1] * 4),
        helper.make_node("Relu", ["stem"], ["positive"], "relu"),
        helper.make_node("MaxPool", ["positive"], ["pooled"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["pooled", "wide_w"], ["wide"], "wide", pads=[1] * 4),
        helper.make_node("Conv", ["wide", "next_w"], ["logits"], "next"),
    ]
    proto = helper.make_graph(
        nodes,
        "pooled",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 64, 8, 8])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    graph = canonicalize(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))
    images = rng.uniform(0, 1, (8, 3, 16, 16)).astype(np.float32)
    plan = make_plan(graph, observe(graph, [images], threads=1), scheme_for("onnxruntime"))
    assert "stem" in plan.float_ops
    plain = quantize_dequantize(graph, plan)
    kept = keep_pools_float(type(plain).FromString(plain.SerializeToString()), plan)
    pooled = next(node.output[0] for node in kept.graph.node if node.op_type == "MaxPool")
    assert [node.op_type for node in kept.graph.node if pooled in node.input] == ["Clip"]
    answers = [
        open_session(model.SerializeToString(), threads=1, optimize=False).run(None, {"images": images})[0]
        for model in (plain, kept)
    ]
    np.testing.assert_array_equal(*answers)


def distributions(axis: int, *shape: int):
    """A network that ends with a Softmax over one axis of ``[N, *shape]``, as DFL has it, or with one over the last."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["images", "weight"], ["sides"], "sides_conv"),
        helper.make_node("Reshape", ["sides", "shape"], ["logits"], "reshape"),
        helper.make_node("Softmax", ["logits"], ["shares"], "softmax", axis=axis),
    ]
    proto = helper.make_graph(
        nodes,
        "distributions",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("shares", TensorProto.FLOAT, ["N", *shape])],
        [
            numpy_helper.from_array(rng.normal(0, 3, (32, 3, 1, 1)).astype(np.float32), "weight"),
            numpy_helper.from_array(np.asarray([-1, *shape], np.int64), "shape"),
        ],
    )
    return canonicalize(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))


@pytest.mark.parametrize(
    ("axis", "shape", "flat"),
    [
        (1, (8, 4, 64), [0, 0, -1]),
        (-3, (8, 4, 64), [0, 0, -1]),
        (2, (4, 8, 8, 8), [0, 0, 0, -1]),
        (2, (4, 8, 64), None),
        (-1, (8, 4, 64), None),
        (1, (32, 64), None),
    ],
)
def test_a_softmax_over_an_axis_in_the_middle_is_flattened_and_gives_the_same_bits(axis, shape, flat, tmp_path):
    graph = distributions(axis, *shape)
    before = graph.to_bytes()
    made = convert(ConversionRequest(graph, "fp32", None, tmp_path)).files["model"][1]
    assert graph.to_bytes() == before
    model = onnx.load_from_string(made)
    onnx.checker.check_model(model, full_check=True)
    makers = {name: node for node in model.graph.node for name in node.output}
    values = {tensor.name: numpy_helper.to_array(tensor).tolist() for tensor in model.graph.initializer}
    (softmax,) = (node for node in model.graph.node if node.op_type == "Softmax")
    read = makers[softmax.input[0]]
    assert (values[read.input[1]] if read.name.endswith("_Flatten") else None) == flat
    images = np.random.default_rng(1).normal(0, 1, (3, 3, 8, 8)).astype(np.float32)
    expected, found = (
        open_session(content, threads=1, optimize=True).run(None, {"images": images})[0] for content in (before, made)
    )
    assert expected.shape == (3, *shape)
    np.testing.assert_array_equal(found, expected)


def test_a_softmax_in_integers_and_one_of_open_size_stay(tmp_path):
    graph = distributions(1, 8, 4, 64)
    assert flatten_softmax(graph.model, {"shares": (None, 8, None, 64)}) is graph.model
    between = onnx.ModelProto()
    between.CopyFrom(graph.model)
    (softmax,) = (node for node in between.graph.node if node.op_type == "Softmax")
    maker = next(node for node in between.graph.node if softmax.input[0] in node.output)
    maker.op_type = "DequantizeLinear"
    assert flatten_softmax(between, graph.shapes) is between
