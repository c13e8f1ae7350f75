"""Which activations carry integers, given the layers that run on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from edgevision.graph import Graph
from edgevision_calibration.observe import activated
from edgevision_calibration.scheme import QuantScheme
from edgevision_calibration.tail import tail_of

if TYPE_CHECKING:
    from onnx import NodeProto

# ops whose output lies on the grid of their input, so both must share one scale
GRID_KEEPING_OPS = frozenset({"MaxPool", "Concat", "Slice", "Reshape", "Transpose", "Flatten", "Squeeze"})


def quantized_tensors(
    graph: Graph,
    compute: Iterable[NodeProto],
    scheme: QuantScheme,
    float_ops: Mapping[str, str],
    exact: frozenset[str] | None = None,
) -> list[str]:
    """Activations that carry integers, in topological order.

    The inputs of compute nodes always; their outputs where the scheme keeps chains integer
    (``scheme.quantize_outputs``); and the outputs of integer ops all of whose inputs carry integers. Those of ``exact``
    never do: by default all that lies behind the last layers, see `edgevision_calibration.tail`.
    """
    flow = _flow_of(graph)
    exact = tail_of(graph).tensors if exact is None else exact
    layers = {node.name: flow.by_name[node.name] for node in compute}
    passing = _passing(flow, layers, scheme, float_ops)
    quantized = {op.inputs[0] for op in layers.values()}
    if scheme.quantize_outputs:
        quantized.update(op.made for op in layers.values() if op.made is not None)
    quantized -= exact
    for op in passing:
        if op.made is not None and quantized.issuperset(op.inputs):
            quantized.add(op.made)
    # a grid-keeping op whose output is quantized wants integers on the way in as well
    for op in reversed(passing):
        if op.kind in GRID_KEEPING_OPS and op.output in quantized:
            quantized.update(op.inputs)
    useful = _useful(flow, layers, scheme)
    return [name for name in flow.order if name in quantized and name in useful]


def data_inputs(graph: Graph, node: NodeProto) -> list[str]:
    """Inputs of a node that are activations."""
    return [name for name in node.input if name and name not in graph.initializers]


@dataclass(frozen=True)
class _Op:
    """A node: its op, the activations it reads, its first output, and what leaves it behind its Relu or Clip."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    output: str
    made: str | None


@dataclass(frozen=True)
class _Flow:
    """What of a graph is asked for again and again while a plan tries layers in float.

    Attributes:
        ops: nodes, in topological order.
        by_name: the same by name.
        order: all activations, in topological order.
        behind: names of the nodes that make the activations behind the last layers.
    """

    ops: tuple[_Op, ...]
    by_name: Mapping[str, _Op]
    order: tuple[str, ...]
    behind: frozenset[str]


_flows: WeakKeyDictionary[Graph, _Flow] = WeakKeyDictionary()


def _flow_of(graph: Graph) -> _Flow:
    if graph not in _flows:
        ops = tuple(
            _Op(node.name, node.op_type, tuple(data_inputs(graph, node)), str(node.output[0]), activated(graph, node))
            for node in graph.nodes
        )
        tail = tail_of(graph).tensors
        _flows[graph] = _Flow(
            ops,
            {op.name: op for op in ops},
            (graph.input_name, *(str(name) for node in graph.nodes for name in node.output)),
            frozenset(node.name for node in graph.nodes if not tail.isdisjoint(node.output)),
        )
    return _flows[graph]


def _passing(flow: _Flow, layers: Mapping[str, _Op], scheme: QuantScheme, float_ops: Mapping[str, str]) -> list[_Op]:
    """Nodes that may pass integers on, in topological order.

    Where chains are kept integer these need a layer on integers to come from: after a float layer a pooling, say, has
    nothing to gain (ONNX Runtime's takes 14 times float's time there), and fewer values are left to round behind it.
    """
    made = {op.made for op in layers.values()}
    passing = []
    for op in flow.ops:
        if op.kind not in scheme.integer_ops or op.name in float_ops or not op.inputs or op.name in flow.behind:
            continue
        if not scheme.quantize_outputs or not made.isdisjoint(op.inputs):
            made.add(op.made)
            passing.append(op)
    return passing


def _useful(flow: _Flow, layers: Mapping[str, _Op], scheme: QuantScheme) -> set[str]:
    """Tensors that an integer op makes (`compute`'s outputs) or one reads: others would round for nothing."""
    useful = {op.inputs[0] for op in layers.values()}
    if scheme.quantize_outputs:
        useful.update(op.made for op in layers.values() if op.made is not None)
    for op in reversed(flow.ops):
        # an op between two layers is worth its integers where somebody wants them
        if op.kind in scheme.integer_ops and op.name not in layers and (op.output in useful or op.made in useful):
            useful.update(op.inputs)
    return useful
