from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, shape_inference

from edgevision.graph import Graph
from edgevision.parity import sqnr_db
from edgevision.pipeline.golden import run_graph
from edgevision_calibration.observe import observe
from edgevision_calibration.planning import make_plan
from edgevision_calibration.scheme import scheme_for
from edgevision_calibration.weight_sharing import share_weights
from edgevision_calibration.weights import quantize_weight, weight_axis

RNG = np.random.default_rng(0)
PICTURES = [RNG.uniform(0.0, 1.0, (1, 3, 12, 12)).astype(np.float32) for _ in range(16)]


def weights(*shape: int) -> np.ndarray:
    """Channels of very different size, as folded batch norms leave them."""
    size = RNG.lognormal(0.0, 1.0, (shape[0], *(1 for _ in shape[1:])))
    return (size * RNG.normal(0, 1, shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


@pytest.fixture(scope="module")
def graph() -> Graph:
    arrays = {
        "w1": weights(64, 3, 3, 3), "b1": weights(64),
        "dw": weights(64, 1, 3, 3), "bd": weights(64),
        "w2": weights(96, 64, 1, 1), "b2": weights(96),
        "fc": weights(10, 96), "bf": weights(10),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["images", "w1", "b1"], ["a"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["ar"], "relu1"),
        helper.make_node("Conv", ["ar", "dw", "bd"], ["d"], "depthwise", pads=[1, 1, 1, 1], group=64),
        helper.make_node("Relu", ["d"], ["dr"], "relu2"),
        helper.make_node("Conv", ["dr", "w2", "b2"], ["e"], "pointwise"),
        helper.make_node("GlobalAveragePool", ["e"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "fc", "bf"], ["logits"], "classifier", transB=1),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "net",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 12, 12])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
            [numpy_helper.from_array(value, name) for name, value in arrays.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    return Graph(shape_inference.infer_shapes(model))


@pytest.fixture(scope="module")
def table(graph):
    return observe(graph, iter(PICTURES), preprocess_digest="", source="noise")


def answers(graph: Graph) -> dict[str, np.ndarray]:
    return run_graph(graph.to_bytes(), np.concatenate(PICTURES), exact=True)


def quality(graph: Graph, shared: Graph) -> float:
    return sqnr_db(answers(graph)["logits"], answers(shared)["logits"])


def test_a_layer_takes_the_values_it_is_given(graph):
    net = share_weights(graph, 4)
    # 27 and 9 weights an output are few: 8 bits, for which first and depthwise layer are too small
    assert set(net.layers) == {"pointwise", "classifier"}
    for node, tensor in (("pointwise", "w2"), ("classifier", "fc")):
        assert net.layers[node] == {"bits": 4, "values": 16, "weights": graph.initializers[tensor].size}
        rows = net.graph.initializers[tensor].reshape(len(graph.initializers[tensor]), -1)
        assert all(len(np.unique(row)) <= 16 for row in rows)
    for name in ("w1", "b1", "dw", "bd", "b2", "bf"):
        np.testing.assert_array_equal(net.graph.initializers[name], graph.initializers[name])


def test_more_bits_are_closer(graph):
    noise = [quality(graph, share_weights(graph, bits).graph) for bits in (2, 4, 6)]
    assert noise == sorted(noise)
    # two bits more quarter the error of every weight, 12 dB; k-means, not settled evenly, keeps most of it
    assert noise[2] - noise[0] > 15


def test_corrected_biases_take_back_the_mean_error(graph, table):
    def bias_of_mean(shared: Graph) -> float:
        found, expected = answers(shared)["logits"], answers(graph)["logits"]
        return float(np.abs((found - expected).mean(axis=0)).max())

    plain, corrected = share_weights(graph, 2), share_weights(graph, 2, table=table)
    # borders are counted as if they were inside, so something is left; only 1x1 and dense layers are shared here
    assert bias_of_mean(corrected.graph) < 0.1 * bias_of_mean(plain.graph)
    assert not np.array_equal(corrected.graph.initializers["b2"], graph.initializers["b2"])
    np.testing.assert_array_equal(plain.graph.initializers["b2"], graph.initializers["b2"])


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "ncnn", "tensorrt"])
def test_quantized_layers_share_integers(graph, table, target):
    plan = make_plan(graph, table, scheme_for(target))
    net = share_weights(graph, 3, plan=plan, table=table)
    assert net.plan is not None
    assert net.plan.graph_sha256 == net.graph.sha256
    for node in net.graph.nodes:
        if node.name not in net.layers or node.name in plan.float_ops:
            continue
        name = node.input[1]
        integers = quantize_weight(net.graph.initializers[name], plan.weights[name], weight_axis(node))
        assert len(np.unique(integers)) == net.layers[node.name]["values"] <= 8
        # on the grid: the engine's integers are those that were meant
        shape = (-1,) + (1,) * (integers.ndim - 1)
        on_grid = (integers * plan.weights[name].reshape(shape)).astype(np.float32)
        np.testing.assert_array_equal(net.graph.initializers[name], on_grid)
        assert not np.array_equal(net.plan.biases[node.name], plan.biases[node.name])


def test_without_bits_nothing_changes(graph, table):
    plan = make_plan(graph, table, scheme_for("onnxruntime"))
    net = share_weights(graph, None, plan=plan, table=table)
    assert net.graph is graph
    assert net.plan is plan
    assert not net.layers
    assert net.tensors
