"""What layers in float cost in a net on integers: their products, their weights, and every tensor they take along."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from edgevision.graph import Graph
from edgevision_calibration.observe import activated
from edgevision_calibration.scheme import COMPUTE_OPS, QuantScheme

if TYPE_CHECKING:
    from onnx import NodeProto

# integers: so many products in the time of one of floats; and half of a float's time to read or write a value
_INTEGER_PRODUCTS = 4.0
_INTEGER_VALUE = 0.5
# a weight in float is read from memory, as half a value
_FLOAT_WEIGHT = 0.5
# in a file a weight's share counts half as much as the same share of the time
_FILE_SHARE = 0.5


def macs(graph: Graph, node: NodeProto) -> int:
    """Multiply-accumulates of a Conv, Gemm or MatMul for one picture; 0 where shapes are not known."""
    weight = graph.initializers.get(node.input[1]) if len(node.input) > 1 else None
    shape = graph.shapes.get(node.output[0], ())
    if weight is None:
        return 0
    pixels = shape[2:] if node.op_type == "Conv" else shape[1:-1]
    return int(weight.size) * math.prod(size or 1 for size in pixels)


class FloatCost:
    """Time that layers in float add, as a share of the time of the net with as much on integers as its scheme takes.

    A tensor in float is larger, is rounded or read back where integers go on, and a Concat, pooling or addition whose
    inputs are no longer all integers takes its other tensors along and leaves its neighbours' rounding to be done
    apart. So the time is that of the layers' products and weights and of every tensor that is float with them.

    Args:
        graph: the canonical graph.
        layers: compute nodes that run on integers.
        carried: tensors that carry integers when all of them do.
        scheme: whose ``products_per_value`` is used; where its layers round alone no tensor around them changes.
    """

    def __init__(
        self, graph: Graph, layers: Iterable[NodeProto], carried: Collection[str], scheme: QuantScheme
    ) -> None:
        self._graph = graph
        self._per_value = scheme.products_per_value
        self._carried = frozenset(carried)
        self._around: dict[str, frozenset[str]] = {}
        self._work: dict[str, float] = {}
        self._stored: dict[str, int] = {}
        self._elements = {name: math.prod(size or 1 for size in shape) for name, shape in graph.shapes.items()}
        for node in layers:
            self._stored[node.name] = int(graph.initializers[node.input[1]].size)
            self._work[node.name] = macs(graph, node) + self._per_value * _FLOAT_WEIGHT * self._stored[node.name]
            made = activated(graph, node) or str(node.output[0])
            self._around[node.name] = frozenset(() if scheme.layers_round_alone else (str(node.input[0]), made))
        share = 1.0 if scheme.layers_round_alone else _INTEGER_VALUE
        self._whole = max(sum(self._time(node, share) for node in graph.nodes), 1.0)
        self._file = max(sum(self._stored.values()), 1)

    def in_float(self, names: Iterable[str], carried: Collection[str]) -> frozenset[str]:
        """Tensors that the layers ``names`` in float make or keep float, where ``carried`` still carry integers."""
        return self.around(names) | (self._carried.difference(carried) if any(self._around.values()) else frozenset())

    def around(self, names: Iterable[str]) -> frozenset[str]:
        """What the layers ``names`` read and write themselves: the least that goes to float with them."""
        return frozenset().union(*(self._around[name] for name in names))

    def added(self, names: Collection[str], tensors: Iterable[str]) -> float:
        """Share of the whole that the layers ``names`` add with the ``tensors`` that leave integers for them.

        Of time or of the file, whichever is more.
        """
        time = sum(self._work[name] for name in names)
        time += self._per_value * sum(self._elements.get(name, 1) for name in tensors)
        return max(time / self._whole, _FILE_SHARE * sum(self._stored[name] for name in names) / self._file)

    def _time(self, node: NodeProto, integer_value: float) -> float:
        """Time of a layer as the plan has it with nothing in float for accuracy."""
        if node.op_type not in COMPUTE_OPS:
            return 0.0
        moved = self._per_value * sum(self._elements.get(name, 1) for name in (node.input[0], node.output[0]))
        if node.name in self._work:
            return macs(self._graph, node) / _INTEGER_PRODUCTS + integer_value * moved
        return macs(self._graph, node) + moved
