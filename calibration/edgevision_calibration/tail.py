"""What lies behind a network's last layers: there a detector's boxes are decoded, and no plan puts that into integers.

Box sizes in pixels beside probabilities, joined by one Concat, would share one step: a step of a few pixels leaves no
probability. DFL's distances are means over a Softmax, objectness and classes pass a Sigmoid, sizes an Exp: their
rounding would be seen in every box, and they take next to no time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from edgevision.graph import Graph
from edgevision_calibration.scheme import COMPUTE_OPS

if TYPE_CHECKING:
    from onnx import NodeProto

# ops that hand values on as they are
_MOVING = frozenset({
    "Concat", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip
# behind these rounding is averaged away, and the layer before them may be a large one, as in SqueezeNet
_POOLING = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean"})


@dataclass(frozen=True)
class Tail:
    """What is decoded behind the last layers.

    Attributes:
        tensors: outputs of the last layers and all that is made of them, unless it is pooled.
        decoders: names of compute nodes in it: they take the mean over a Softmax, as DFL does.
    """

    tensors: frozenset[str]
    decoders: tuple[str, ...]


_found: WeakKeyDictionary[Graph, Tail] = WeakKeyDictionary()


def tail_of(graph: Graph) -> Tail:
    """The tail of a canonical graph; looked for once."""
    if graph not in _found:
        _found[graph] = _look(graph)
    return _found[graph]


def is_decoded(graph: Graph) -> bool:
    """Whether something is computed of what the last layers give, rather than moved at most."""
    tail = tail_of(graph)
    behind = [node for node in graph.nodes if not tail.tensors.isdisjoint(node.output)]
    return any(node.op_type not in _MOVING and not _is_layer(graph, node) for node in behind)


def _look(graph: Graph) -> Tail:
    layers = [node for node in graph.nodes if _is_layer(graph, node)]
    means = [node for node in layers if _is_mean(graph, node)]
    # with a layer of any kind behind it such a mean is part of the network
    ahead = _leading_to(graph, layers)
    decoders = tuple(node.name for node in means if not ahead & set(node.output))
    inside = _leading_to(graph, [node for node in layers if node.name not in decoders])
    inside |= _leading_to(graph, [node for node in graph.nodes if node.op_type in _POOLING])
    behind = {str(name) for node in layers for name in node.output}
    tensors: set[str] = set()
    for node in graph.nodes:
        if behind & set(node.input):
            behind.update(str(name) for name in node.output)
        tensors.update(str(name) for name in node.output if name in behind and name not in inside)
    return Tail(frozenset(tensors), decoders)


def _is_layer(graph: Graph, node: NodeProto) -> bool:
    return node.op_type in COMPUTE_OPS and len(node.input) > 1 and node.input[1] in graph.initializers


def _is_mean(graph: Graph, node: NodeProto) -> bool:
    """Whether a layer reads a Softmax with nothing computed between: it weighs its columns by probabilities."""
    maker = graph.producer.get(node.input[0])
    while maker is not None and maker.op_type in _MOVING:
        maker = graph.producer.get(maker.input[0])
    return maker is not None and maker.op_type == "Softmax"


def _leading_to(graph: Graph, nodes: Iterable[NodeProto]) -> set[str]:
    """Tensors that some of ``nodes`` depend on."""
    wanted = {str(name) for node in nodes for name in node.input}
    for node in reversed(graph.nodes):
        if wanted & set(node.output):
            wanted.update(str(name) for name in node.input)
    return wanted
