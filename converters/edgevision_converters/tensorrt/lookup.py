"""Look-ups over a model that the check and the lowering share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto


class Lookup:
    """Who makes and who reads each tensor of the main graph, and what is constant."""

    def __init__(self, model: ModelProto) -> None:
        from onnx import numpy_helper

        self.model = model
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.producer: dict[str, NodeProto] = {name: node for node in self.nodes for name in node.output if name}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                if name:
                    self.readers.setdefault(name, []).append(node)
        self.constants: dict[str, npt.NDArray[Any]] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer
        }
        for node in self.nodes:
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.name == "value":
                        self.constants[node.output[0]] = numpy_helper.to_array(attribute.t)

    def constant(self, node: NodeProto, position: int) -> npt.NDArray[Any] | None:
        """Value of an input that is constant; None where it is absent or computed."""
        name = self.input(node, position)
        return self.constants.get(name) if name else None

    def made_by(self, node: NodeProto, position: int = 0) -> NodeProto | None:
        """The node that computes an input; None where it is absent, constant or an input of the graph."""
        return self.producer.get(self.input(node, position))

    @staticmethod
    def input(node: NodeProto, position: int) -> str:
        """Name of an input; empty where it is absent."""
        return str(node.input[position]) if position < len(node.input) else ""


def every_node(graph: GraphProto) -> Iterator[NodeProto]:
    """All nodes, those of subgraphs (If, Loop, Scan) included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from every_node(attribute.g)
            for subgraph in attribute.graphs:
                yield from every_node(subgraph)


def where(node: NodeProto) -> str:
    """``Conv 'stem'``: op and name of a node, or its output where it has no name."""
    return f"{node.op_type} {(node.name or next(iter(node.output), ''))!r}"


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """Value of a node's attribute, text as ``str``."""
    from onnx import helper

    for candidate in node.attribute:
        if candidate.name == name:
            value = helper.get_attribute_value(candidate)
            return value.decode() if isinstance(value, bytes) else value
    return default
