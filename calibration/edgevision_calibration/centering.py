"""Channels of linear tensors moved to lie evenly around zero: an affine change that biases make and undo."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgevision.graph import Graph, attributes
from edgevision_calibration.weights import per_input

if TYPE_CHECKING:
    from onnx import NodeProto

Array = npt.NDArray[np.float64]


def movable_tensors(graph: Graph) -> list[str]:
    """Tensors to whose channels constants may be added without changing the network's function.

    Outputs of convolutions and additions that only additions and unpadded convolutions (or linear layers) read:
    what is added in the bias of the one before is taken off in the bias of the one behind, exactly. Padding would
    put zeros beside the moved values, so padded convolutions cannot follow.
    """
    movable = {
        str(node.output[0])
        for node in graph.nodes
        if (_has_bias(graph, node) or _is_addition(graph, node))
        and node.output[0] in graph.consumers
        and node.output[0] not in graph.output_names
    }
    while True:
        kept = {
            name
            for name in movable
            if all(
                _undoes(graph, node) or (_is_addition(graph, node) and node.output[0] in movable)
                for node in graph.consumers[name]
            )
        }
        if kept == movable:
            return [str(name) for node in graph.nodes for name in node.output if name in movable]
        movable = kept


def choose_offsets(graph: Graph, middles: Mapping[str, Array]) -> dict[str, Array]:
    """What to add to each movable tensor, float64 ``[C]``, so that ``middles`` come to lie at zero.

    An addition's offset is the sum of those of its inputs; a convolution in front of one settles for the mean of
    what its own output and the sum would like.

    Args:
        graph: the graph.
        middles: movable tensor → middle of the range of each channel ``[C]``.
    """
    offsets: dict[str, Array] = {}
    for node in graph.nodes:
        name = str(node.output[0])
        if name not in middles:
            continue
        if _is_addition(graph, node):
            offsets[name] = np.sum([offsets.get(source, np.zeros(len(middles[name]))) for source in node.input], axis=0)
            continue
        wishes = [-middles[name]]
        for reader in graph.consumers[name]:
            others = [source for source in reader.input if source != name]
            # an input that is moved, but not yet, will do its own part
            if _is_addition(graph, reader) and all(other in offsets or other not in middles for other in others):
                arriving = [offsets[other] for other in others if other in offsets]
                wishes.append(-middles[reader.output[0]] - np.sum([np.zeros(len(middles[name])), *arriving], axis=0))
        offsets[name] = np.mean(wishes, axis=0)
    return offsets


def move(graph: Graph, offsets: Mapping[str, Array]) -> Graph:
    """The graph with ``offsets`` (as `choose_offsets` makes them) added to its tensors, by its biases alone.

    Source: as the absorption of high biases of Nagel et al., Data-Free Quantization Through Weight Equalization and
    Bias Correction, arXiv 1906.04721, section 4.1.3, for tensors without an activation, where it is exact.
    """
    changes: dict[str, Array] = {}
    for node in graph.nodes:
        if node.op_type not in {"Conv", "Gemm"} or len(node.input) < 3:
            continue
        change = np.zeros(graph.initializers[node.input[2]].size)
        if node.output[0] in offsets:
            change += offsets[node.output[0]]
        if node.input[0] in offsets:
            weight = per_input(graph.initializers[node.input[1]].astype(np.float64), node).sum(axis=3)
            arriving = offsets[node.input[0]].reshape(weight.shape[0], weight.shape[2])
            change -= np.einsum("goi,gi->go", weight, arriving).reshape(-1)
        changes[node.input[2]] = change
    moved = {}
    for name, change in changes.items():
        if np.any(change):
            bias = graph.initializers[name]
            moved[name] = (bias.astype(np.float64) + change.reshape(bias.shape)).astype(np.float32)
    return graph.with_initializers(moved)


def _has_bias(graph: Graph, node: NodeProto) -> bool:
    """Whether a node is a Conv or plain Gemm with constants of its own, a bias among them."""
    if node.op_type not in {"Conv", "Gemm"} or len(node.input) < 3:
        return False
    own = all(name in graph.initializers and len(graph.consumers[name]) == 1 for name in node.input[1:])
    values = attributes(node)
    plain = values.get("alpha", 1.0) == values.get("beta", 1.0) == 1.0 and not values.get("transA", 0)
    return own and plain and graph.initializers[node.input[2]].size == _outputs(graph, node)


def _outputs(graph: Graph, node: NodeProto) -> int:
    groups, outputs = per_input(graph.initializers[node.input[1]], node).shape[:2]
    return int(groups * outputs)


def _undoes(graph: Graph, node: NodeProto) -> bool:
    """Whether the bias of a node can take an offset off its input."""
    if not _has_bias(graph, node):
        return False
    values = attributes(node)
    unpadded = not any(values.get("pads", [])) and values.get("auto_pad", "NOTSET") in {"NOTSET", "VALID"}
    return node.op_type == "Gemm" or unpadded


def _is_addition(graph: Graph, node: NodeProto) -> bool:
    """Whether a node adds two activations of one shape."""
    shapes = {graph.shapes.get(name) for name in [*node.input, *node.output]}
    constant = any(name in graph.initializers for name in node.input)
    return node.op_type == "Add" and not constant and len(shapes) == 1 and None not in shapes
