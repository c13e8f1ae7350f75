"""Weights as integers: where their output channels lie, how large their steps are, how they are rounded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from edgevision.graph import Graph, attributes
from edgevision_calibration.scheme import QuantScheme

if TYPE_CHECKING:
    from onnx import NodeProto

LEAST_SCALE = 1e-12
# an int32 bias of more than this would overflow the accumulator
_BIAS_LIMIT = float(1 << 30)
# what is tried instead of the step that just holds the greatest weight, which comes first
_SHARES = np.asarray([1.0, *np.linspace(0.85, 1.2, 36)], np.float32)
_ERROR_OF_SUM = np.float32(0.5)
# weights are tried in pieces that stay in the processor's cache
_PIECE = 1 << 15
# the steps do not depend on the target, so its plans share them
_FOUND: WeakKeyDictionary[Graph, dict[tuple[str, int, tuple[int, ...]], npt.NDArray[np.float32]]] = WeakKeyDictionary()


def weight_axis(node: NodeProto) -> int:
    """Axis of the output channels in a compute node's weight."""
    if node.op_type == "Gemm":
        return 0 if attributes(node).get("transB", 0) else 1
    return 1 if node.op_type in {"MatMul", "ConvTranspose"} else 0


def weight_scales(
    graph: Graph, node: NodeProto, scheme: QuantScheme, activation_scale: float
) -> npt.NDArray[np.float32]:
    """Symmetric step per output channel ``[out_channels]`` (``[1]`` per tensor) with the least squared error.

    Channels of one group have the same step where the scheme knows one per group only. A channel whose bias would
    overflow int32 gets a larger step.
    """
    weight = graph.initializers[node.input[1]]
    axis = weight_axis(node)
    if node.op_type in {"Conv", "Gemm"}:
        by_output = per_input(weight, node)
        by_output = by_output.reshape(-1, *by_output.shape[2:])
    else:
        by_output = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1, 1)
    if not scheme.weight_per_channel:
        by_output = by_output.reshape(1, -1, by_output.shape[2])
    groups = attributes(node).get("group", 1)
    if scheme.weight_per_channel and scheme.weight_per_group and groups > 1:
        by_group = by_output.reshape(groups, -1, by_output.shape[2])
        steps = np.repeat(_steps_of(graph, node, by_group), len(by_output) // groups)
    else:
        steps = _steps_of(graph, node, by_output)
    if scheme.quantize_bias and len(node.input) > 2 and node.input[2] in graph.initializers:
        bias = np.abs(graph.initializers[node.input[2]].reshape(-1))
        least = bias / (activation_scale * _BIAS_LIMIT)
        steps = np.maximum(steps, least if scheme.weight_per_channel else least.max())
    return np.asarray(np.maximum(steps, LEAST_SCALE), np.float32)


def _steps_of(graph: Graph, node: NodeProto, weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """`best_steps` of a node's weight, found once for all the plans of a graph."""
    found = _FOUND.setdefault(graph, {})
    key = (node.input[1], weight_axis(node), weight.shape)
    if key not in found:
        found[key] = best_steps(weight)
    return found[key]


def best_steps(weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Step of each output channel, float32 ``[O]``, for weights ``[O, I, taps]``.

    The least of `_ERROR_OF_SUM` · (Σ_taps e)² + (1 − `_ERROR_OF_SUM`) · Σ_taps e² over the inputs: neighbouring
    pixels are alike, so an error that the taps share weighs more than one that they cancel. Steps from 0.85
    (clipping) to 1.2 times the one that just holds the greatest weight are tried: with the few taps of a
    depthwise convolution a somewhat larger step often falls closer to all of them.

    Source: optimal steps by squared error ("OMSE"), Choukroun et al., arXiv 1902.06822, section 3.
    """
    rows = max(1, _PIECE // max(weight[0].size, 1))
    return np.concatenate([_best_steps(weight[first : first + rows]) for first in range(0, len(weight), rows)])


def _best_steps(weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    peaks = np.abs(weight).max(axis=(1, 2)) / np.float32(127.0)
    peaks = np.maximum(peaks, np.float32(LEAST_SCALE))
    best, least = peaks.copy(), np.full(len(peaks), np.inf, np.float32)
    scaled = weight / peaks[:, None, None]
    error = np.empty_like(scaled)
    for share in _SHARES:
        np.rint(np.multiply(scaled, 1 / share, out=error), out=error)
        if share < 1:
            np.clip(error, -127, 127, out=error)
        error *= share
        error -= scaled
        total = np.einsum("oit,oit->o", error, error)
        if weight.shape[2] > 1:
            sums = error.sum(axis=2)
            total = (1 - _ERROR_OF_SUM) * total + _ERROR_OF_SUM * np.einsum("oi,oi->o", sums, sums)
        better = total < least
        best[better], least[better] = (peaks * share)[better], total[better]
    return np.asarray(best, np.float32)


def quantize_weight(
    weight: npt.NDArray[np.float32], scales: npt.NDArray[np.float32], axis: int
) -> npt.NDArray[np.int8]:
    """``clip(round(w / scale), -127, 127)``, rounding half to even as QuantizeLinear does."""
    return np.asarray(np.clip(np.round(weight / along(scales, axis, weight.ndim)), -127, 127), np.int8)


def along(values: npt.NDArray[Any], axis: int, rank: int) -> npt.NDArray[Any]:
    """``values`` ``[n]`` reshaped to broadcast along ``axis`` of an array of ``rank`` dimensions."""
    shape = [1] * rank
    shape[axis] = len(values)
    return values.reshape(shape)


def per_input(weight: npt.NDArray[Any], node: NodeProto) -> npt.NDArray[Any]:
    """A Conv's or Gemm's weight as a view ``[groups, out_per_group, in_per_group, taps]``.

    Input channel ``g · in_per_group + i`` is index ``[g, :, i]``; output channel ``g · out_per_group + o`` is
    index ``[g, o]``.
    """
    if node.op_type == "Conv":
        groups = attributes(node).get("group", 1)
        return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    by_output = weight if weight_axis(node) == 0 else weight.T
    return by_output[None, :, :, None]
