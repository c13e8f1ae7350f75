"""Weight sharing: the weights of a layer take few values, so that they can be stored as short indices.

Source: S. Han, H. Mao, W. Dally, Deep Compression, arXiv 1510.00149, section 3. Departing from it, each output channel
has a factor of its own where the layer stays in float, since folded batch norms leave channels of very different
size; quantized layers share integers; and biases take back what sharing does to the mean of an output, in place of
training (M. Nagel et al., arXiv 1906.04721, section 4.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgevision.compression.codec import shared_values
from edgevision.compression.kmeans import kmeans, nearest
from edgevision.compression.packing import Weights
from edgevision.graph import Graph
from edgevision_calibration.plan import QuantPlan
from edgevision_calibration.scheme import COMPUTE_OPS
from edgevision_calibration.table import CalibrationTable
from edgevision_calibration.weights import along, per_input, quantize_weight, weight_axis

if TYPE_CHECKING:
    from onnx import NodeProto

# outputs of fewer weights than this, as of depthwise layers and first ones, average no errors out
_FEW_TAPS = 32
_BITS_OF_FEW = 8
# a codebook may be an eighth of its layer's weights at most
_WEIGHTS_PER_VALUE = 8
_LEAST_SCALE = np.float32(1e-12)


@dataclass(frozen=True)
class SharedNet:
    """A graph with shared weights.

    Attributes:
        graph: the graph.
        plan: its plan, where it has one.
        tensors: what its engine files will hold, for packing.
        layers: node → ``bits`` asked for, ``values`` taken and ``weights`` there are.
    """

    graph: Graph
    plan: QuantPlan | None
    tensors: Sequence[Weights]
    layers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Layer:
    """One layer's new weights: float32 as the graph has them, and how they will be stored."""

    weight: npt.NDArray[np.float32]
    stored: Sequence[Weights]
    values: int


def share_weights(
    graph: Graph, bits: int | None, *, plan: QuantPlan | None = None, table: CalibrationTable | None = None
) -> SharedNet:
    """Let the weights of every layer take at most ``2 ** bits`` values.

    Outputs with fewer than 32 weights, as depthwise layers have them, take 8 bits whatever is asked for; layers with
    too few weights for a codebook stay as they are.

    Args:
        graph: the canonical graph; for ``plan`` the one it belongs to.
        bits: 1..8; None changes nothing and only tells the tensors.
        plan: layers that it quantizes share integers on its grid, so that every engine gets just these.
        table: means of the activations, for the correction of biases; none is made without it.

    Returns:
        The changed graph and plan.
    """
    if bits is None:
        return SharedNet(graph, plan, _kept(graph, plan, {}))
    layers: dict[str, _Layer] = {}
    report: dict[str, dict[str, int]] = {}
    for node in graph.nodes:
        if not _has_weight(graph, node) or node.input[1] in layers:
            continue
        wanted, weight = _bits_for(graph, node, bits), graph.initializers[node.input[1]]
        if weight.size < _WEIGHTS_PER_VALUE * 2**wanted:
            continue
        layer = (_share_integers if _is_quantized(node, plan) else _share_floats)(graph, node, wanted, plan)
        layers[node.input[1]] = layer
        report[node.name] = {"bits": wanted, "values": layer.values, "weights": int(weight.size)}
    biases = {} if table is None else _corrected_biases(graph, plan, table, layers)
    weights = {name: layer.weight for name, layer in layers.items()}
    changed, plan = _changed(graph, plan, weights, biases)
    tensors = [stored for layer in layers.values() for stored in layer.stored]
    return SharedNet(changed, plan, [*tensors, *_kept(changed, plan, layers)], report)


def _has_weight(graph: Graph, node: NodeProto) -> bool:
    if node.op_type not in COMPUTE_OPS or len(node.input) < 2:
        return False
    weight = graph.initializers.get(node.input[1])
    return weight is not None and weight.dtype == np.float32 and weight.ndim >= 2


def _is_quantized(node: NodeProto, plan: QuantPlan | None) -> bool:
    return plan is not None and node.input[1] in plan.weights and node.name not in plan.float_ops


def _bits_for(graph: Graph, node: NodeProto, bits: int) -> int:
    weight = graph.initializers[node.input[1]]
    return max(bits, _BITS_OF_FEW) if weight.size // weight.shape[weight_axis(node)] < _FEW_TAPS else bits


def _share_floats(graph: Graph, node: NodeProto, bits: int, plan: QuantPlan | None) -> _Layer:
    """Values shared by all channels, times a factor of each where these are the rows."""
    weight = graph.initializers[node.input[1]]
    matrix = weight.reshape(len(weight), -1)
    scales = _factors(matrix) if weight_axis(node) == 0 else None
    relative = matrix if scales is None else matrix / scales[:, None]
    codebook = kmeans(relative, 2**bits)
    indices = nearest(relative, codebook)
    made = shared_values(codebook, indices, scales).reshape(weight.shape)
    return _Layer(made, [Weights(made, codebook, indices, scales)], len(codebook))


def _factors(matrix: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The greatest weight of each row, up to 8 bits of mantissa: half of every factor need not be stored."""
    greatest = np.maximum(np.abs(matrix).max(axis=1), _LEAST_SCALE).astype(np.float32)
    return np.asarray((greatest.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32))


def _share_integers(graph: Graph, node: NodeProto, bits: int, plan: QuantPlan | None) -> _Layer:
    """Integers shared by all channels, on the grid that the plan has for the layer."""
    assert plan is not None
    name, axis = node.input[1], weight_axis(node)
    scales = plan.weights[name]
    weight = graph.initializers[name]
    # not the integers: rounded weights between two shared values would be rounded twice
    relative = np.clip(weight / along(scales, axis, weight.ndim), -127, 127)
    matrix = relative.reshape(len(relative), -1)
    codebook = np.unique(np.rint(kmeans(matrix, 2**bits))).astype(np.float32)
    indices = nearest(matrix, codebook)
    shared = shared_values(codebook, indices, None, "<i1").reshape(weight.shape)
    made = (shared * along(scales, axis, shared.ndim)).astype(np.float32)
    rows = np.broadcast_to(scales, (len(matrix),)) if axis == 0 or len(scales) == 1 else None
    stored = [Weights(shared, codebook, indices)]
    stored.append(Weights(made) if rows is None else Weights(made, codebook, indices, np.asarray(rows, np.float32)))
    return _Layer(made, stored, len(codebook))


def _corrected_biases(
    graph: Graph, plan: QuantPlan | None, table: CalibrationTable, layers: Mapping[str, _Layer]
) -> dict[str, npt.NDArray[np.float32]]:
    """Node → bias that leaves the mean of every output channel where it was before its weights were shared."""
    readers: dict[str, int] = {}
    for node in graph.nodes:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    corrected = {}
    for node in graph.nodes:
        if node.op_type not in {"Conv", "Gemm"} or len(node.input) < 3 or node.input[1] not in layers:
            continue
        bias = graph.initializers.get(node.input[2])
        if bias is None or node.input[0] not in table.tensors or readers[node.input[2]] > 1:
            continue
        before = graph.initializers[node.input[1]]
        if _is_quantized(node, plan):
            assert plan is not None
            scales, axis = plan.weights[node.input[1]], weight_axis(node)
            before = quantize_weight(before, scales, axis) * along(scales, axis, before.ndim)
            bias = plan.biases.get(node.name, bias)
        error = per_input(layers[node.input[1]].weight.astype(np.float64) - before, node).sum(axis=3)
        mean = table[node.input[0]].channel_mean.reshape(error.shape[0], error.shape[2])
        shift = np.einsum("goi,gi->go", error, mean).reshape(-1)
        corrected[node.name] = (bias.reshape(-1) - shift).astype(np.float32)
    return corrected


def _changed(
    graph: Graph,
    plan: QuantPlan | None,
    weights: Mapping[str, npt.NDArray[np.float32]],
    biases: Mapping[str, npt.NDArray[np.float32]],
) -> tuple[Graph, QuantPlan | None]:
    """The graph with its new weights; biases of quantized layers go into the plan, the others into the graph."""
    planned = {
        node.name: biases[node.name] for node in graph.nodes if node.name in biases and _is_quantized(node, plan)
    }
    arrays = dict(weights)
    for node in graph.nodes:
        if node.name in biases and node.name not in planned:
            arrays[node.input[2]] = biases[node.name].reshape(graph.initializers[node.input[2]].shape)
    changed = graph.with_initializers(arrays)
    if plan is not None:
        plan = replace(plan, graph_sha256=changed.sha256, biases={**plan.biases, **planned})
    return changed, plan


def _kept(graph: Graph, plan: QuantPlan | None, shared: Mapping[str, Any]) -> list[Weights]:
    """Numbers of the graph and plan that are stored as they are."""
    found = [
        Weights(array) for name, array in graph.initializers.items() if name not in shared and array.dtype == np.float32
    ]
    if plan is None:
        return found
    for node in graph.nodes:
        if _has_weight(graph, node) and _is_quantized(node, plan) and node.input[1] not in shared:
            weight = graph.initializers[node.input[1]]
            found.append(Weights(quantize_weight(weight, plan.weights[node.input[1]], weight_axis(node))))
    return found + [Weights(array) for array in [*plan.weights.values(), *plan.biases.values()]]
