from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgevision.errors import UnsupportedOpError
from edgevision.graph import Graph
from edgevision.models import MODELS, create_model
from edgevision_calibration.observe import expose, observe, open_session
from edgevision_calibration.planning import make_plan
from edgevision_calibration.scheme import SCHEMES
from edgevision_calibration.torch_graph import FakeQuantGraph, TorchGraph, fake_quantize
from edgevision_converters.canonical import canonicalize
from edgevision_converters.export import export_module
from edgevision_converters.qdq import quantize_dequantize
from tests.conformance.nets import SIZE, picture, tiny_net

ZOO = ("mobilenet_v2", "mobilenet_v3_small", "squeezenet1_1", "repvgg_tiny")


def one_op(kind, inputs, shape, **attributes):
    """A graph of one op on ``images`` and constants."""
    names, constants = ["images"], []
    for number, value in enumerate(inputs):
        names.append("" if value is None else f"c{number}")
        if value is not None:
            constants.append(numpy_helper.from_array(np.asarray(value), f"c{number}"))
    node = helper.make_node(kind, names, ["out"], f"the_{kind}", **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return Graph(onnx.shape_inference.infer_shapes(model))


RNG = np.random.default_rng(0)


def weights(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def integers(*values):
    return np.asarray(values, np.int64)


CASES = {
    "conv_asymmetric": ("Conv", [weights(4, 3, 3, 3), weights(4)], {"pads": [0, 1, 2, 1], "strides": [2, 2]}),
    "conv_grouped": ("Conv", [weights(6, 1, 3, 3)], {"group": 3, "dilations": [2, 2]}),
    "conv_transpose": (
        "ConvTranspose",
        [weights(3, 4, 3, 3), weights(4)],
        {"strides": [2, 2], "pads": [1, 0, 1, 2], "output_padding": [1, 1]},
    ),
    "max_pool_ceil": ("MaxPool", [], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    "max_pool_asymmetric": ("MaxPool", [], {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}),
    "average_pool_padded": ("AveragePool", [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "average_pool_asymmetric": ("AveragePool", [], {"kernel_shape": [3, 3], "pads": [0, 1, 1, 0]}),
    "average_pool_counting": (
        "AveragePool",
        [],
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1},
    ),
    "nearest": ("Resize", [None, np.float32([1, 1, 2, 2])], {"mode": "nearest"}),
    "nearest_floor": (
        "Resize",
        [None, np.float32([1, 1, 1.5, 1.5])],
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    ),
    "linear": ("Resize", [None, None, integers(2, 3, 12, 13)], {"mode": "linear"}),
    "linear_corners": (
        "Resize",
        [None, None, integers(2, 3, 5, 13)],
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    ),
    "slice": ("Slice", [integers(1, -1), integers(6, -100), integers(2, 3), integers(2, -2)], {}),
    "pad": ("Pad", [integers(0, 0, 1, 0, 0, 0, 0, 2), np.float32(0.5)], {}),
    "pad_reflect": ("Pad", [integers(0, 0, 1, 2, 0, 0, 2, 1)], {"mode": "reflect"}),
    "prelu": ("PRelu", [weights(3, 1, 1)], {}),
    "hard_swish": ("HardSwish", [], {}),
    "hard_sigmoid": ("HardSigmoid", [], {"alpha": 0.15, "beta": 0.4}),
    "transpose": ("Transpose", [], {"perm": [0, 2, 3, 1]}),
    "reshape": ("Reshape", [integers(0, -1, 4)], {}),
    "gather": ("Gather", [integers(2, 0)], {"axis": 1}),
    "reduce_mean": ("ReduceMean", [integers(2, 3)], {"keepdims": 0}),
    "batch_norm": ("BatchNormalization", [weights(3), weights(3), weights(3), np.abs(weights(3)) + 0.1], {}),
    "instance_norm": ("InstanceNormalization", [weights(3), weights(3)], {}),
    "softmax": ("Softmax", [], {"axis": 1}),
    "unsqueeze": ("Unsqueeze", [integers(0, 3)], {}),
    "depth_to_space": ("SpaceToDepth", [], {"blocksize": 2}),
}


@pytest.mark.parametrize("name", CASES)
def test_an_op_computes_what_onnx_runtime_does(name):
    kind, inputs, attributes = CASES[name]
    graph = one_op(kind, inputs, [2, 3, 8, 8], **attributes)
    images = RNG.normal(size=(2, 3, 8, 8)).astype(np.float32)
    expected = open_session(graph.to_bytes(), optimize=False).run(None, {"images": images})[0]
    got = TorchGraph(graph)(torch.from_numpy(images))["out"].numpy()
    assert got.shape == expected.shape
    # float32 sums of at most a few dozen terms of order one
    np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize("name", ZOO)
def test_networks_of_the_zoo_compute_what_onnx_runtime_does(name):
    assert name in MODELS
    torch.manual_seed(0)
    graph = export_module(create_model(name, num_classes=5, in_channels=3, input_size=32, width=0.5))
    images = RNG.normal(size=(3, 3, 32, 32)).astype(np.float32)
    expected = open_session(graph.to_bytes(), optimize=False).run(None, {"images": images})[0]
    got = TorchGraph(graph)(torch.from_numpy(images))["logits"].numpy()
    # dozens of layers, each adding in another order than ONNX Runtime
    assert np.abs(got - expected).max() <= 1e-4 * max(1.0, float(np.abs(expected).max()))


def test_an_op_without_gradients_is_named():
    graph = one_op("Hardmax", [], [2, 3, 8, 8])
    with pytest.raises(UnsupportedOpError, match=r"Hardmax \(node the_Hardmax\)"):
        TorchGraph(graph)


@pytest.fixture(scope="module")
def calibrated():
    graph = canonicalize(tiny_net())
    images = np.stack([picture(index) for index in range(12)]).astype(np.float32).transpose(0, 3, 1, 2) / 255.0
    return graph, observe(graph, [images[i : i + 1] for i in range(12)]), images


@pytest.mark.parametrize("target", SCHEMES)
def test_fake_quantization_gives_the_integers_of_the_reference(calibrated, target):
    graph, table, images = calibrated
    assert images.shape[2:] == (SIZE, SIZE)
    plan = make_plan(graph, table, SCHEMES[target])
    names = [name for name in plan.activations if name != graph.input_name]
    reference = Graph(quantize_dequantize(graph, plan))
    session = open_session(expose(reference, [f"{name}_dequantized" for name in names]), optimize=False)
    expected = session.run(None, {"images": images})
    quantized = FakeQuantGraph(graph, plan)
    with torch.no_grad():
        got = quantized.execute({"images": torch.from_numpy(images)}, quantized.nodes, names)
        for name, values in zip(names, expected, strict=True):
            ours = quantized.quantize_activation(name, got[name]).numpy()
            steps = np.abs(ours - values) / plan.activations[name].scale
            # sums in another order fall on the other side of a rounding boundary now and then, and what follows
            # from that is a step as well; a wrong rule would shift most values
            assert (steps > 0.5).mean() < 0.02, name
            assert steps.max() < 4.5, name


def test_weights_and_biases_are_those_of_the_reference_to_the_bit(calibrated):
    graph, table, _ = calibrated
    plan = make_plan(graph, table, SCHEMES["onnxruntime"])
    names = [name for node in graph.nodes if node.op_type in {"Conv", "Gemm"} for name in node.input[1:]]
    reference = quantize_dequantize(graph, plan)
    quantized = FakeQuantGraph(graph, plan)
    readers = {node.name: node for node in reference.graph.node}
    for node in quantized.nodes:
        if node.name not in quantized._layers:
            continue
        inputs = list(readers[node.name].input[1:])
        model = expose(Graph(reference), inputs)
        weight, bias = open_session(model, optimize=False).run(
            None, {"images": np.zeros((1, 3, SIZE, SIZE), np.float32)}
        )
        np.testing.assert_array_equal(quantized.weight(node).detach().numpy(), weight)
        # the rounding is added to the bias, which costs its last bit
        np.testing.assert_allclose(quantized.bias(node).detach().numpy(), bias, rtol=3e-7, atol=1e-7)
    assert names


def test_half_rounds_to_even_and_ends_saturate():
    x = torch.tensor([0.5, 1.5, -0.5, 2.5, 300.0, -300.0])
    out = fake_quantize(x, torch.tensor(1.0), 3.0, 0.0, 255.0)
    assert out.tolist() == [0.0, 2.0, 0.0, 2.0, 252.0, -3.0]


def test_gradients_are_lsq_s():
    x = torch.tensor([0.6, 9.0, -9.0], requires_grad=True)
    scale = torch.tensor(0.5, requires_grad=True)
    fake_quantize(x, scale, 0.0, -4.0, 3.0).sum().backward()
    assert x.grad.tolist() == [1.0, 0.0, 0.0]
    # round(1.2) − 1.2 inside, the bounds outside (equation 3)
    assert float(scale.grad) == pytest.approx(1.0 - 1.2 + 3.0 - 4.0, abs=1e-6)


def test_what_is_learned_is_what_rounding_to_nearest_gives(calibrated):
    graph, table, images = calibrated
    plan = make_plan(graph, table, SCHEMES["openvino"])
    quantized = FakeQuantGraph(graph, plan, learn=frozenset({"weights", "weight_steps", "activation_steps"}))
    generator = torch.Generator().manual_seed(0)
    for parameter in [*quantized.weight_changes, *quantized.bias_changes]:
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    for parameter in [*quantized.step_changes, *quantized.weight_step_changes]:
        parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    learned, learned_plan = quantized.learned()
    again = FakeQuantGraph(learned, learned_plan)
    with torch.no_grad():
        for node in quantized.nodes:
            if node.name in quantized._layers:
                assert torch.equal(again.weight(node), quantized.weight(node))
        first, second = quantized(torch.from_numpy(images)), again(torch.from_numpy(images))
    # the same integers and the same sums in the same order
    np.testing.assert_array_equal(first["logits"].numpy(), second["logits"].numpy())
