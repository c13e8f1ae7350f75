"""OpenVINO takes the canonical graph, or its Q/DQ form, through its own ONNX reader, in a child process."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgevision.dependencies import require
from edgevision.graph import Graph, attributes, replace_nodes
from edgevision_calibration.plan import QuantPlan
from edgevision_converters.child import run_python
from edgevision_converters.qdq import dequantized_names, quantize_dequantize
from edgevision_converters.target import ConversionRequest, EngineFiles

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


def convert(request: ConversionRequest) -> EngineFiles:
    """The IR's two files, ``engine/model.xml`` and ``engine/model.bin``.

    Raises:
        ConversionError: OpenVINO cannot read the graph, crashed or ran out of time.
    """
    require("openvino", purpose="convert to OpenVINO")
    source = request.workdir / "source.onnx"
    model = request.graph.model if request.plan is None else _quantized_model(request.graph, request.plan)
    source.write_bytes(request.with_nms(model).SerializeToString(deterministic=True))
    target = request.workdir / "model.xml"
    run_python(
        "edgevision_converters.openvino:save_ir",
        {"source": str(source), "target": str(target), "half": request.precision == "fp16"},
        timeout_s=request.timeout_s,
        what="OpenVINO's model reader",
    )
    files = {
        "model": ("engine/model.xml", target.read_bytes()),
        "weights": ("engine/model.bin", target.with_suffix(".bin").read_bytes()),
    }
    names = {} if request.plan is None else dequantized_names(request.plan)
    return EngineFiles(files, tensor_names=names, versions={"openvino": version("openvino")})


def _quantized_model(graph: Graph, plan: QuantPlan) -> ModelProto:
    """The graph with the plan written in as Q/DQ, in a form that OpenVINO computes rightly."""
    from onnx import numpy_helper

    model = quantize_dequantize(graph, plan)
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if _counts_padding(node) and (channels := graph.shapes.get(str(node.output[0]), (None, None))[1]):
            convolution, weight = _average_as_convolution(node, channels)
            model.graph.initializer.append(numpy_helper.from_array(weight, convolution.input[1]))
            nodes.append(convolution)
        elif node.op_type == "Clip" and str(node.input[0]) not in graph.producer:
            nodes.extend(_clip_as_relu_and_min(node, graph))
        else:
            nodes.append(node)
    replace_nodes(model, nodes)
    return model


def _counts_padding(node: NodeProto) -> bool:
    values = attributes(node)
    counts = node.op_type == "AveragePool" and values.get("count_include_pad", 0) and any(values.get("pads", []))
    return bool(counts) and not values.get("ceil_mode", 0)


def _average_as_convolution(node: NodeProto, channels: int) -> tuple[NodeProto, npt.NDArray[np.float32]]:
    """An average pool whose padding counts as a depthwise convolution in float, and its weight.

    OpenVINO runs an average pool on integers whose zero point is not 0 and pads them with integer zeros, which then
    stand for other numbers than 0 (seen in 2026.4).
    """
    from onnx import helper

    values = attributes(node)
    kernel = values["kernel_shape"]
    weight = np.full((channels, 1, *kernel), 1.0 / np.prod(kernel), np.float32)
    kept = {key: values[key] for key in ("pads", "strides") if key in values}
    inputs = [node.input[0], f"{node.output[0]}_average"]
    convolution = helper.make_node(
        "Conv", inputs, list(node.output), node.name, group=channels, kernel_shape=kernel, **kept
    )
    return convolution, weight


def _clip_as_relu_and_min(node: NodeProto, graph: Graph) -> list[NodeProto]:
    """A Clip from 0 of a dequantized tensor, as Relu and Min.

    OpenVINO moves such a Clip in front of the dequantization, where its bounds are cut off to whole numbers: what was
    at a bound comes out up to a step below it, zeros included (seen in 2026.4). Relu and Min stay where they are.
    """
    from onnx import helper

    clip = type(node).FromString(node.SerializeToString())
    low = graph.initializers.get(str(node.input[1])) if len(node.input) > 1 else None
    if low is None or float(low) != 0.0 or len(node.input) < 3 or not node.input[2]:
        return [clip]
    positive = f"{node.output[0]}_positive"
    return [
        helper.make_node("Relu", [node.input[0]], [positive], f"{node.name}_Relu"),
        helper.make_node("Min", [positive, node.input[2]], list(node.output), node.name),
    ]


def save_ir(source: str, target: str, half: bool) -> None:
    """Read an ONNX file and write the IR; runs in the child process."""
    openvino = require("openvino", purpose="convert to OpenVINO")
    model = openvino.convert_model(source)
    # the reader names results after their producers; the bundle's names are the graph's
    openvino.save_model(model, str(Path(target)), compress_to_fp16=half)
