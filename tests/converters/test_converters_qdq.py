from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgevision.graph import attributes
from edgevision_calibration.planning import make_plan
from edgevision_calibration.scheme import SCHEMES
from edgevision_calibration.weights import along, quantize_weight, weight_axis
from edgevision_converters.qdq import quantize_dequantize

sys.path.append(str(Path(__file__).parents[1] / "calibration"))
from calibration_nets import NETS, Builder, fire, pictures, run, sqnr_db, table_of

IMAGES = pictures(16)


def pointwise():
    """Layers that numpy computes in a line each."""
    b = Builder()
    first = b.relu(b.conv("images", 8))
    second = b.relu6(b.conv(first, 8))
    added = b.op("Add", first, second)
    joined = b.op("Concat", added, b.relu(b.conv(added, 4)), channels=12, axis=1)
    return b.graph(b.head(joined, 5, trans_b=0))


def simulated(graph, plan, images):
    """What the plan says, in numpy's float64: every tensor by name."""
    low, high = plan.scheme.quant_range

    def rounded(name, value):
        if name not in plan.activations:
            return value
        quant = plan.activations[name]
        integers = np.clip(np.rint(value / np.float32(quant.scale)) + quant.zero_point, low, high)
        return (integers - quant.zero_point) * np.float64(np.float32(quant.scale))

    values = {"images": images.astype(np.float64)}
    for node in graph.nodes:
        # a layer rounds its input for itself where the scheme says so, else everybody reads the rounded tensor
        alone = plan.scheme.layers_round_alone and node.op_type not in {"Conv", "Gemm"}
        inputs = [
            rounded(name, values[name]) if name in values and not alone else values.get(name) for name in node.input
        ]
        if node.op_type in {"Conv", "Gemm"}:
            weight, steps = graph.initializers[node.input[1]], plan.weights[node.input[1]]
            axis = weight_axis(node)
            weight = quantize_weight(weight, steps, axis) * along(steps, axis, weight.ndim).astype(np.float64)
            bias = plan.biases.get(node.name, graph.initializers[node.input[2]]).astype(np.float64)
            if plan.scheme.quantize_bias:
                bias_steps = np.float64(np.float32(plan.activations[node.input[0]].scale) * steps)
                bias = np.rint(bias / bias_steps) * bias_steps
            if node.op_type == "Conv":
                result = np.einsum("oi,bihw->bohw", weight[:, :, 0, 0], inputs[0]) + bias[:, None, None]
            else:
                result = inputs[0] @ (weight if axis == 1 else weight.T) + bias
        elif node.op_type == "Relu":
            result = np.maximum(inputs[0], 0)
        elif node.op_type == "Clip":
            result = np.clip(inputs[0], 0, 6)
        elif node.op_type == "Add":
            result = inputs[0] + inputs[1]
        elif node.op_type == "Concat":
            result = np.concatenate(inputs, axis=1)
        else:
            result = (
                inputs[0].mean((2, 3), keepdims=True) if node.op_type == "GlobalAveragePool" else inputs[0][:, :, 0, 0]
            )
        values[node.output[0]] = result
    return values


@pytest.mark.parametrize("target", SCHEMES)
@pytest.mark.parametrize("correction", [False, True])
def test_the_graph_computes_what_the_plan_says(target, correction):
    graph = pointwise()
    scheme = replace(SCHEMES[target], stem=None, least_products=0.0)  # all layers are to run on integers here
    plan = make_plan(graph, table_of(graph, IMAGES), scheme, bias_correction=correction)
    model = quantize_dequantize(graph, plan)
    onnx.checker.check_model(model)
    expected = simulated(graph, plan, IMAGES)[graph.output_names[0]]
    got = run(model, IMAGES)[0]
    # Sums in float32 and in float64 fall on either side of a rounding boundary now and then, which costs one step
    # of one pixel; were a scale, a zero point or a bias wrong, the two would agree to 20 dB or so.
    assert sqnr_db(expected, got) > 55
    # and 8 bits are 8 bits
    assert 20 < sqnr_db(run(graph, IMAGES)[0], got) < 55


@pytest.mark.parametrize("target", SCHEMES)
@pytest.mark.parametrize("name", NETS)
def test_every_net_gets_a_valid_graph(name, target):
    graph = NETS[name]()
    plan = make_plan(graph, table_of(graph, IMAGES), SCHEMES[target])
    model = quantize_dequantize(graph, plan)
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.output] == graph.output_names
    assert sqnr_db(run(graph, IMAGES)[0], run(model, IMAGES)[0]) > 15
    # a name for every node, and none twice
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)
    # the canonical graph itself is not touched
    assert graph.sha256 == plan.graph_sha256


@pytest.mark.parametrize("target", SCHEMES)
def test_weights_and_biases_are_stored_as_the_scheme_wants(target):
    scheme = replace(SCHEMES[target], stem=None, least_products=0.0)
    graph = pointwise()
    plan = make_plan(graph, table_of(graph, IMAGES), scheme)
    model = quantize_dequantize(graph, plan)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    maker = {node.output[0]: node for node in model.graph.node}
    for node in model.graph.node:
        if node.op_type not in {"Conv", "Gemm"}:
            continue
        dequantize = maker[node.input[1]]
        assert dequantize.op_type == "DequantizeLinear"
        if scheme.weights_as_float:
            quantize = maker[dequantize.input[0]]
            assert quantize.op_type == "QuantizeLinear"
            assert stored[quantize.input[0]].dtype == np.float32
        else:
            assert stored[dequantize.input[0]].dtype == np.int8
        assert attributes(dequantize)["axis"] == weight_axis(node)
        if scheme.quantize_bias:
            source = maker[node.input[2]]
            assert stored[source.input[0]].dtype == np.int32
            activation = maker[node.input[0]]
            expected = stored[activation.input[1]] * stored[dequantize.input[1]]
            np.testing.assert_array_equal(stored[source.input[1]], expected)
        else:
            np.testing.assert_array_equal(stored[node.input[2]], plan.biases[node.name])
    zero_points = [stored[n.input[2]].dtype for n in model.graph.node if n.op_type == "QuantizeLinear"]
    assert {str(dtype) for dtype in zero_points} <= {scheme.activation_dtype, "int8"}
    # float weights that integers replaced are gone
    left = sum(value.nbytes for value in stored.values())
    assert scheme.weights_as_float or left < sum(value.nbytes for value in graph.initializers.values()) * 1.5


def test_a_bias_that_two_layers_read_is_corrected_for_each():
    b = Builder()
    x = b.relu(b.conv("images", 6))
    y = b.conv(x, 6)
    bias = b.nodes[-1].input[2]
    z = b.conv(x, 6)
    b.nodes[-1].input[2] = bias
    graph = b.graph(b.head(b.relu(b.op("Add", y, z))))
    plan = make_plan(graph, table_of(graph, IMAGES), SCHEMES["openvino"])
    model = quantize_dequantize(graph, plan)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    convs = [node for node in model.graph.node if node.op_type == "Conv"][1:]
    assert len({node.input[2] for node in convs}) == 2
    for node in convs:
        np.testing.assert_array_equal(stored[node.input[2]], plan.biases[node.name])


@pytest.mark.parametrize("target", SCHEMES)
def test_who_reads_the_rounded_tensor_is_the_schemes_to_say(target):
    b = Builder()
    x = b.conv("images", 6)
    y = b.conv(x, 6)
    added = b.op("Add", x, y)
    graph = b.graph(b.head(b.relu(added)))
    scheme = replace(SCHEMES[target], stem=None, least_products=0.0)
    plan = make_plan(graph, table_of(graph, IMAGES), scheme)
    assert x in plan.activations
    nodes = {node.name: node for node in quantize_dequantize(graph, plan).graph.node}
    assert nodes[f"Conv_{y}"].input[0] == f"{x}_dequantized"
    # ncnn has the integers inside the layer; an addition beside it gets what the layer before it made
    assert nodes[f"Add_{added}"].input[0] == (x if target == "ncnn" else f"{x}_dequantized")


def test_nodes_kept_in_float_keep_their_weights():
    graph = fire()
    kept = graph.nodes[0].name
    plan = make_plan(graph, table_of(graph, IMAGES), SCHEMES["onnxruntime"], keep_float={kept: "sensitive"})
    model = quantize_dequantize(graph, plan)
    node = next(node for node in model.graph.node if node.name == kept)
    assert list(node.input) == list(graph.nodes[0].input)
