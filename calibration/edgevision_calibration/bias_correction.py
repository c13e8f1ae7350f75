"""Bias correction: what rounding the weights does to the mean of an output is taken off its bias."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from edgevision.graph import Graph
from edgevision_calibration.plan import QuantPlan
from edgevision_calibration.table import CalibrationTable
from edgevision_calibration.weights import along, per_input, quantize_weight, weight_axis

if TYPE_CHECKING:
    from onnx import NodeProto

# layer, steps, means → what rounding moves
_FOUND: WeakKeyDictionary[Graph, dict[tuple[str, bytes, bytes], npt.NDArray[np.float64]]] = WeakKeyDictionary()


def corrected_biases(graph: Graph, plan: QuantPlan, table: CalibrationTable) -> Mapping[str, npt.NDArray[np.float32]]:
    """Biases that leave the mean of every output channel where it is in float.

    ``b − Σ (ŵ − w) · E[x]`` over the taps and input channels, with the means of the calibration pictures. Border
    pixels, where padding puts zeros, are counted as if they were inside. A node without a bias keeps none.

    Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, arXiv
    1906.04721, section 4.2, with measured means in place of those of batch norm.

    Returns:
        Name of the compute node → float32 ``[out_channels]``, for every Conv and Gemm that ``plan`` quantizes.
    """
    biases = {}
    for node in graph.nodes:
        if node.op_type not in {"Conv", "Gemm"} or node.name in plan.float_ops or len(node.input) < 3:
            continue
        if node.input[1] in plan.weights and node.input[2] in graph.initializers:
            shift = _shift_of(graph, node, plan.weights[node.input[1]], table[node.input[0]].channel_mean)
            bias = graph.initializers[node.input[2]].reshape(-1)
            biases[node.name] = (bias - shift).astype(np.float32)
    return biases


def _shift_of(
    graph: Graph, node: NodeProto, scales: npt.NDArray[np.float32], mean: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """`_output_shift`, found once for all the plans whose steps are the same."""
    found = _FOUND.setdefault(graph, {})
    key = (node.name, scales.tobytes(), mean.tobytes())
    if key not in found:
        found[key] = _output_shift(graph, node, scales, mean)
    return found[key]


def _output_shift(
    graph: Graph, node: NodeProto, scales: npt.NDArray[np.float32], mean: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Change of the mean of each output channel by rounding the weights, float64 ``[out_channels]``."""
    weight = graph.initializers[node.input[1]]
    axis = weight_axis(node)
    rounded = quantize_weight(weight, scales, axis) * along(scales, axis, weight.ndim).astype(np.float64)
    error = per_input((rounded - weight), node).sum(axis=3)
    shift = np.einsum("goi,gi->go", error, mean.reshape(error.shape[0], error.shape[2]))
    return np.asarray(shift.reshape(-1), np.float64)
