"""Layers of an OpenVINO IR: its XML has the shape of every port."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator

from edgevision.devices.layers import LayerCost, elements, kind_of
from edgevision.errors import ModelError

_PRODUCTS = {
    "Convolution",
    "GroupConvolution",
    "ConvolutionBackpropData",
    "GroupConvolutionBackpropData",
    "MatMul",
}

# what moves data and is not fused into the layer before
_MOVING = {
    "Add", "AvgPool", "Concat", "Interpolate", "MaxPool", "Multiply", "Pad", "ReduceMean", "Softmax", "SoftMax",
    "Split", "Transpose", "VariadicSplit",
}  # fmt: skip

# between a layer and the FakeQuantize that makes its input integers
_TRANSPARENT = {"Reshape", "Squeeze", "Unsqueeze", "Convert"}


def openvino_layers(text: str, wide: str) -> list[LayerCost]:
    """Layers of an IR's XML.

    Args:
        text: the XML.
        wide: precision of layers whose input is not quantized.

    Raises:
        ModelError: not an IR.
    """
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ModelError(f"not an OpenVINO IR: {error}") from error
    nodes = {node.get("id", ""): node for node in root.iterfind("./layers/layer")}
    producer = {
        (edge.get("to-layer", ""), edge.get("to-port", "")): edge.get("from-layer", "")
        for edge in root.iterfind("./edges/edge")
    }
    constants = {key for key, node in nodes.items() if node.get("type") == "Const"}
    layers = []
    for key, node in nodes.items():
        kind = node.get("type", "")
        inputs, outputs = _ports(node, "input"), _ports(node, "output")
        if kind in _PRODUCTS:
            quantized = _quantized(nodes, producer, key, next(iter(inputs), ""))
            layers.append(_product(node, kind, [*inputs.values()], [*outputs.values()], "int8" if quantized else wide))
        elif kind in _MOVING:
            read = [shape for port, shape in inputs.items() if producer.get((key, port)) not in constants]
            if len(read) == 1 and kind in {"Add", "Multiply"}:
                continue  # a bias or a scale: fused
            moved = sum(elements(shape) for shape in read), sum(elements(shape) for shape in outputs.values())
            layers.append(LayerCost(node.get("name", key), "other", 0, 0, *moved, wide))
    return layers


def _product(
    node: ElementTree.Element, kind: str, inputs: list[list[int]], outputs: list[list[int]], precision: str
) -> LayerCost:
    data, weights, made = inputs[0], inputs[1], outputs[0]
    counts = math.prod(weights), elements(data), elements(made)
    name = node.get("name", "")
    if kind == "MatMul":
        attributes = node.find("data")
        transposed = attributes is not None and attributes.get("transpose_a") in {"true", "1"}
        depth = data[-2 if transposed else -1]
        return LayerCost(name, "dense", elements(made) * depth, *counts, precision)
    grouped = kind.startswith("Group")
    # [G, O, I, kH, kW] of a grouped one, [O, I, kH, kW] of another; backwards, I stands before O
    kernel = weights[2:] if grouped else weights[1:]
    base = counts[1] if kind.endswith("BackpropData") else counts[2]
    groups = weights[0] if grouped else 1
    return LayerCost(name, kind_of(groups, max(1, made[1])), base * math.prod(kernel), *counts, precision)


def _ports(node: ElementTree.Element, side: str) -> dict[str, list[int]]:
    """Port → shape; free dimensions count once."""
    ports = node.iterfind(f"./{side}/port")
    return {port.get("id", ""): [max(1, int(dim.text or 1)) for dim in port.iterfind("dim")] for port in ports}


def _quantized(
    nodes: dict[str, ElementTree.Element], producer: dict[tuple[str, str], str], key: str, port: str
) -> bool:
    for node in _upwards(nodes, producer, key, port):
        kind = node.get("type")
        if kind == "FakeQuantize":
            return True
        if kind not in _TRANSPARENT:
            return False
    return False


def _upwards(
    nodes: dict[str, ElementTree.Element], producer: dict[tuple[str, str], str], key: str, port: str
) -> Iterator[ElementTree.Element]:
    # no graph is deeper than it has nodes: a circle in a damaged file ends here
    for _ in nodes:
        key = producer.get((key, port), "")
        if key not in nodes:
            return
        yield nodes[key]
        port = next(iter(_ports(nodes[key], "input")), "")
