"""ONNX Runtime takes the canonical graph but for the form of a Softmax, and INT8 as Q/DQ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgevision.graph import attributes, replace_nodes
from edgevision_calibration.plan import QuantPlan
from edgevision_converters.qdq import dequantized_names, quantize_dequantize
from edgevision_converters.target import ConversionRequest, EngineFiles

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


def convert(request: ConversionRequest) -> EngineFiles:
    """One ONNX file, ``engine/model.onnx``."""
    model = request.graph.model if request.plan is None else quantized_model(request, request.plan)
    model = flatten_softmax(model, request.graph.shapes)
    content = bytes(request.with_nms(model).SerializeToString(deterministic=True))
    names = {} if request.plan is None else dequantized_names(request.plan)
    return EngineFiles({"model": ("engine/model.onnx", content)}, tensor_names=names)


def quantized_model(request: ConversionRequest, plan: QuantPlan) -> ModelProto:
    """The graph with the plan written in as Q/DQ."""
    return keep_pools_float(quantize_dequantize(request.graph, plan), plan)


def keep_pools_float(model: ModelProto, plan: QuantPlan) -> ModelProto:
    """Put a Clip to the grid's range between a float MaxPool and the QuantizeLinear behind it; edits ``model``.

    ONNX Runtime moves a QuantizeLinear in front of the pooling before it, which then runs on bytes: behind a float
    layer that takes 14 times the time of the float pooling (seen in 1.31: 3.9 against 0.25 ms), as only behind an
    integer layer it has channels last. Nothing is moved through a Clip, and the rounding clips likewise.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        maker, output = makers.get(node.input[0]) if node.input else None, str(node.output[0])
        rounded = any(reader.op_type == "QuantizeLinear" for reader in readers.get(output, []))
        if node.op_type == "MaxPool" and rounded and (maker is None or maker.op_type != "DequantizeLinear"):
            node.output[0] = f"{output}_pooled"
            nodes.append(_clip_to_grid(model, plan, f"{output}_pooled", output))
    replace_nodes(model, nodes)
    return model


def flatten_softmax(model: ModelProto, shapes: Mapping[str, tuple[int | None, ...]]) -> ModelProto:
    """Make one axis of those behind a Softmax's own: the same values, in a fifth of the time.

    ONNX Runtime exchanges the axis with the last one. Where others lie between them that is its slowest transposition:
    5 of YOLOv8n's 71 ms went into the distributions of its boxes (seen in 1.31). Reshaping costs nothing.

    Args:
        model: as it is lowered; not changed.
        shapes: of the graph's tensors; None for free dimensions.
    """
    from onnx import helper, numpy_helper

    quantized = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    nodes, constants = [], []
    for node in model.graph.node:
        shape = shapes.get(node.output[0])
        axis = attributes(node).get("axis", -1) % len(shape) if node.op_type == "Softmax" and shape else 0
        behind = [] if shape is None else list(shape[axis + 1 :])
        # a Softmax in integers reads its DequantizeLinear and nothing between
        if node.op_type != "Softmax" or len(behind) < 2 or None in behind or node.input[0] in quantized:
            nodes.append(node)
            continue
        source, output = node.input[0], node.output[0]
        # 0 copies a dimension
        for name, sides in (("flat_shape", [-1]), ("shape", behind)):
            constants.append(
                numpy_helper.from_array(np.asarray([0] * (axis + 1) + sides, np.int64), f"{output}_{name}")
            )
        softmax = helper.make_node("Softmax", [f"{output}_flat_input"], [f"{output}_flat"], node.name, axis=axis)
        nodes += [
            helper.make_node(
                "Reshape", [source, f"{output}_flat_shape"], [f"{output}_flat_input"], f"{output}_Flatten"
            ),
            softmax,
            helper.make_node("Reshape", [f"{output}_flat", f"{output}_shape"], [output], f"{output}_Unflatten"),
        ]
    if not constants:
        return model
    flattened: ModelProto = type(model).FromString(model.SerializeToString())
    replace_nodes(flattened, nodes)
    flattened.graph.initializer.extend(constants)
    return flattened


def _clip_to_grid(model: ModelProto, plan: QuantPlan, source: str, output: str) -> NodeProto:
    from onnx import helper, numpy_helper

    quant = plan.activations[output]
    bounds = [f"{output}_least", f"{output}_greatest"]
    for name, integer in zip(bounds, plan.scheme.quant_range, strict=True):
        value = np.float32(quant.scale) * np.float32(integer - quant.zero_point)
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
    return helper.make_node("Clip", [source, *bounds], [output], f"{output}_Clip")
