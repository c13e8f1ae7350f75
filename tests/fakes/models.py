"""Small ONNX models with what matters to TensorRT: depthwise, residual, concat, and Q/DQ in the form it takes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

SIZE = 12
CLASSES = 10


def small_net(opset: int = 17, batch: int | str = "N", kernel_shape: bool = False) -> onnx.ModelProto:
    """``images [N, 3, 12, 12]`` → ``logits [N, 10]``: stem, depthwise, pointwise, residual, concat, classifier."""
    rng = np.random.default_rng(0)
    weights = {
        "stem_w": rng.normal(0, 0.3, (16, 3, 3, 3)),
        "stem_b": rng.normal(0, 0.1, 16),
        "depthwise_w": rng.normal(0, 0.3, (16, 1, 3, 3)),
        "pointwise_w": rng.normal(0, 0.3, (16, 16, 1, 1)),
        "classifier_w": rng.normal(0, 0.3, (CLASSES, 32)),
        "classifier_b": rng.normal(0, 0.1, CLASSES),
    }
    stated = {"kernel_shape": [3, 3]} if kernel_shape else {}
    nodes = [
        helper.make_node("Conv", ["images", "stem_w", "stem_b"], ["c0"], "stem", pads=[1, 1, 1, 1], **stated),
        helper.make_node("Relu", ["c0"], ["r0"], "stem_relu"),
        helper.make_node("Conv", ["r0", "depthwise_w"], ["c1"], "depthwise", pads=[1] * 4, group=16),
        helper.make_node("Relu", ["c1"], ["r1"], "depthwise_relu"),
        helper.make_node("Conv", ["r1", "pointwise_w"], ["c2"], "pointwise"),
        helper.make_node("Add", ["r0", "c2"], ["a0"], "residual"),
        helper.make_node("Concat", ["r1", "a0"], ["joined"], "join", axis=1),
        helper.make_node("GlobalAveragePool", ["joined"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["features"], "flatten"),
        helper.make_node("Gemm", ["features", "classifier_w", "classifier_b"], ["logits"], "classifier", transB=1),
    ]
    return _model(nodes, weights, [batch, CLASSES], opset, batch)


def _model(nodes, weights, output_shape, opset, batch="N", size=SIZE, output="logits"):
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, size, size])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, output_shape)],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def quantized_net(opset: int = 17, float_ops: tuple[str, ...] = ()) -> onnx.ModelProto:
    """`small_net` with Q/DQ at the inputs and weights of its layers, and one scale for both inputs of the concat."""
    model = small_net(opset)
    peaks = _peaks(model, ["images", "r0", "r1", "a0", "features"])
    peaks["r1"] = peaks["a0"] = max(peaks["r1"], peaks["a0"])
    nodes = []
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm") and node.name not in float_ops:
            nodes += _activation(model, node, 0, peaks)
            nodes += _weight(model, node)
        elif node.op_type == "Concat":
            nodes += _activation(model, node, 0, peaks) + _activation(model, node, 1, peaks)
        nodes.append(node)
    made: dict[str, onnx.NodeProto] = {}
    for node in nodes:  # an activation read twice is quantized once
        made.setdefault(node.output[0], node)
    ordered = list(made.values())
    del model.graph.node[:]
    model.graph.node.extend(ordered)
    return model


def _peaks(model: onnx.ModelProto, names: list[str]) -> dict[str, float]:
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    inner = [name for name in names if name != "images"]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    feed = pictures(8)
    values = dict(zip(inner, session(probe).run(inner, {"images": feed}), strict=True)) | {"images": feed}
    return {name: float(np.abs(values[name]).max()) for name in names}


def _activation(model, node, position, peaks):
    name = node.input[position]
    _constant(model, f"{name}_scale", np.float32(peaks[name] / 127))
    _constant(model, f"{name}_zero", np.int8(0))
    node.input[position] = f"{name}_dq"
    parameters = [f"{name}_scale", f"{name}_zero"]
    return [
        helper.make_node("QuantizeLinear", [name, *parameters], [f"{name}_q"], f"{name}_quantize"),
        helper.make_node("DequantizeLinear", [f"{name}_q", *parameters], [f"{name}_dq"], f"{name}_dequantize"),
    ]


def _weight(model, node):
    name = node.input[1]
    value = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == name)
    scales = np.abs(value).reshape(len(value), -1).max(1) / 127
    _constant(model, f"{name}_scale", scales.astype(np.float32))
    _constant(model, f"{name}_zero", np.zeros(len(value), np.int8))
    node.input[1] = f"{name}_dq"
    parameters = [f"{name}_scale", f"{name}_zero"]
    return [
        helper.make_node("QuantizeLinear", [name, *parameters], [f"{name}_q"], f"{name}_quantize", axis=0),
        helper.make_node("DequantizeLinear", [f"{name}_q", *parameters], [f"{name}_dq"], f"{name}_dequantize", axis=0),
    ]


def _constant(model, name, value):
    if name not in {tensor.name for tensor in model.graph.initializer}:
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))


def session(model: onnx.ModelProto | bytes) -> ort.InferenceSession:
    """ONNX Runtime without fusions: what the graph says, literally."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    data = model if isinstance(model, bytes) else model.SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def pictures(batch: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (batch, 3, SIZE, SIZE)).astype(np.float32)


def find(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def replace_constant(model: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(value), name))


def float_layer_between_integers(size):
    """A float layer whose weights ONNX Runtime 1.31 would round to one coarse step, unasked.

    Returns:
        the model, images → its exact answer, and how far float sums and its own rounding may lead from that.
    """
    rng = np.random.default_rng(3)
    weight = rng.normal(0, 1, (8, 3, 1, 1)).astype(np.float32)
    weight[0] *= 100
    constants = {
        "scale": np.float32(1 / 255), "zero": np.uint8(0), "out_scale": np.float32(4.0), "out_zero": np.uint8(128),
        "weight": weight, "bias": np.zeros(8, np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "scale", "zero"], ["images_q"]),
        helper.make_node("DequantizeLinear", ["images_q", "scale", "zero"], ["images_dq"]),
        helper.make_node("Conv", ["images_dq", "weight", "bias"], ["sums"], "float_layer"),
        helper.make_node("QuantizeLinear", ["sums", "out_scale", "out_zero"], ["sums_q"]),
        helper.make_node("DequantizeLinear", ["sums_q", "out_scale", "out_zero"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "mixed",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 8, size, size])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)

    def exact(images):
        return np.einsum("oi,bihw->bohw", weight[:, :, 0, 0], np.round(images * 255) / 255)

    # half a step of the output's rounding: the small channels would be lost in steps made for the large one
    return model, exact, 2.0 + 1e-3
