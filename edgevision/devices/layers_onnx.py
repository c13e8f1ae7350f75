"""Layers of an ONNX file with Q and DQ or without, for ONNX Runtime and TensorRT. Needs onnx."""

from __future__ import annotations

import math
from typing import Any

from edgevision.dependencies import require
from edgevision.devices.layers import LayerCost, elements, kind_of
from edgevision.errors import ModelError

_PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}

# what moves data and is not fused into the layer before
_MOVING = {
    "Add", "AveragePool", "Concat", "GlobalAveragePool", "HardSigmoid", "HardSwish", "MaxPool", "Mul", "Pad",
    "ReduceMean", "Resize", "Sigmoid", "Slice", "Softmax", "Split", "Transpose",
}  # fmt: skip


def onnx_layers(content: bytes, wide: str) -> list[LayerCost]:
    """Layers of an ONNX model.

    Args:
        content: the file.
        wide: precision of layers whose inputs are not quantized.

    Raises:
        ModelError: not an ONNX model, or shapes cannot be inferred.
        MissingDependencyError: onnx is not installed.
    """
    onnx = require("onnx", purpose="read the layers of an ONNX bundle")
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.shape_inference.infer_shapes(onnx.load_from_string(content), data_prop=True)
    except (DecodeError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"not a readable ONNX model: {error}") from error
    graph = model.graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in [*graph.value_info, *graph.input, *graph.output]:
        shapes[value.name] = tuple(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim)
    constant = {tensor.name for tensor in graph.initializer}
    quantized = set()
    for node in graph.node:
        if node.op_type == "DequantizeLinear":
            quantized.add(node.output[0])
        # TensorRT's files have float weights with Q and DQ behind them
        through = node.op_type in {"QuantizeLinear", "DequantizeLinear"} and node.input[0] in constant
        if through or node.op_type == "Constant":
            constant.add(node.output[0])
    layers = []
    for node in graph.node:
        if node.op_type in _PRODUCTS:
            integer = all(name in quantized for name in list(node.input)[:2])
            layers.append(_product(node, shapes, constant, "int8" if integer else wide))
        elif node.op_type in _MOVING:
            read = [name for name in node.input if name and name not in constant]
            if len(read) == 1 and node.op_type in {"Add", "Mul"}:
                continue
            integer = bool(read) and all(name in quantized for name in read)
            inputs = sum(elements(shapes[name]) for name in read)
            outputs = sum(elements(shapes[name]) for name in node.output if name)
            layers.append(LayerCost(node.name, "other", 0, 0, inputs, outputs, "int8" if integer else wide))
    return layers


def _product(node: Any, shapes: dict[str, tuple[int, ...]], constant: set[str], precision: str) -> LayerCost:
    data, weights, made = (shapes[name] for name in (node.input[0], node.input[1], node.output[0]))
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    inputs, outputs = elements(data), elements(made)
    count = math.prod(weights) if node.input[1] in constant else 0
    if not count:
        inputs += elements(weights)
    if node.op_type in {"Gemm", "MatMul"}:
        depth = data[-2] if node.op_type == "Gemm" and attributes.get("transA") else data[-1]
        return LayerCost(node.name, "dense", outputs * depth, count, inputs, outputs, precision)
    groups = attributes.get("group", 1)
    # [O, I / groups, kH, kW]; of a transposed one [I, O / groups, kH, kW]
    base = elements(data) if node.op_type == "ConvTranspose" else outputs
    return LayerCost(
        node.name, kind_of(groups, made[1]), base * math.prod(weights[1:]), count, inputs, outputs, precision
    )
