"""The INT8 writer: a plan's steps → ncnn's integer layers.

ncnn computes, per output channel c, with real → integer *scales* (the inverse of a plan's steps)::

    q_x = clip(round(x · in_scale), -127, 127)        acc_c = Σ q_w · q_x
    y_c = activation(acc_c / (in_scale · w_scale_c) + bias_c)
    requantized: q_y = clip(round(y_c · out_scale), -127, 127)

round is half away from zero. Key 8 marks the layer: 2 (Convolution, InnerProduct), 1 (ConvolutionDepthWise, one
scale per group); 100 more where the output stays integer for the next layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgevision.graph import Graph, attributes
from edgevision_calibration.plan import QuantPlan
from edgevision_calibration.planning import is_depthwise
from edgevision_converters.ncnn.model import NcnnModel, Weight
from edgevision_converters.ncnn.param import Layer

if TYPE_CHECKING:
    from onnx import NodeProto

_REQUANTIZABLE = ("Convolution", "ConvolutionDepthWise")

# Winograd F(4×4, 3×3) scales its integers by 24² = 576, so its 32-bit sums are exact up to this accumulator
WINOGRAD_LIMIT = (1 << 31) // 576
# bit 6 of a layer's feature mask (key 31): no Winograd
_NO_WINOGRAD = 1 << 6

_NON_NEGATIVE = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softmax"})
_KEEPS_SIGN = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Reshape", "Flatten", "Squeeze"})


@dataclass
class Quantized:
    """An INT8 model with what was decided.

    Attributes:
        model: the model.
        steps: blob that holds integers → its step (real = step · integer).
        explanation: node name → what became of it and why.
    """

    model: NcnnModel
    steps: dict[str, float] = field(default_factory=dict)
    explanation: dict[str, str] = field(default_factory=dict)


def float_reason(node: NodeProto, graph: Graph, plan: QuantPlan) -> str | None:
    """Why a Conv or Gemm stays in float under ``plan``, or None where it runs on integers."""
    if node.name in plan.float_ops:
        return plan.float_ops[node.name]
    if node.op_type not in plan.scheme.compute_ops:
        return f"the {plan.scheme.target} scheme keeps {node.op_type} in float"
    if not plan.scheme.depthwise and is_depthwise(graph, node):
        return f"the {plan.scheme.target} scheme keeps depthwise convolutions in float"
    if node.input[0] not in plan.activations:
        return f"the plan has no range for its input {node.input[0]!r}"
    if node.input[1] not in plan.weights:
        return f"the plan has no scales for its weight {node.input[1]!r}"
    return None


def quantize(model: NcnnModel, nodes: Mapping[str, NodeProto], graph: Graph, plan: QuantPlan) -> Quantized:
    """Make the layers that ``plan`` quantizes integer ones.

    Args:
        model: the FP32 model.
        nodes: layer name → node of the graph (`match.match_layers`).
        graph: the canonical graph the plan belongs to.
        plan: symmetric int8 activations, symmetric int8 weights.
    """
    result = Quantized(NcnnModel([_copied(layer) for layer in model.layers], dict(model.weights)))
    input_scale: dict[str, np.float32] = {}
    input_step: dict[str, float] = {}
    for layer in result.model.layers:
        node = nodes.get(layer.name)
        if node is None:
            continue
        reason = float_reason(node, graph, plan)
        if reason is not None:
            result.explanation[node.name] = f"float: {reason}"
            continue
        input_step[layer.name] = plan.activations[node.input[0]].scale
        scale = input_scale[layer.name] = np.float32(1.0 / input_step[layer.name])
        if node.name in plan.biases and len(result.model.weights[layer.name]) > 1:
            weight, _ = result.model.weights[layer.name]
            result.model.weights[layer.name] = [weight, Weight.raw(plan.biases[node.name])]
        note = _quantize_layer(result.model, layer, plan.weights[node.input[1]], scale, _non_negative(node, graph))
        result.explanation[node.name] = f"int8{note}"
    _fuse_requantize(result, nodes, input_scale, input_step)
    return result


def _copied(layer: Layer) -> Layer:
    return Layer(layer.type, layer.name, list(layer.bottoms), list(layer.tops), dict(layer.params))


def _quantize_layer(
    model: NcnnModel, layer: Layer, steps: npt.NDArray[np.float32], scale: np.float32, non_negative: bool
) -> str:
    """Make one layer an integer one; returns what is worth telling about it."""
    weight, *bias = model.weights[layer.name]
    out_channels = layer.integer(0)
    steps = np.broadcast_to(np.asarray(steps, np.float32), (out_channels,))
    note = ""
    groups = layer.integer(7, 1) if layer.type == "ConvolutionDepthWise" else out_channels
    if groups != out_channels:
        # one scale per group is all ncnn stores: the widest range of the group's channels holds them all
        steps = np.repeat(steps.reshape(groups, -1).max(1), out_channels // groups)
        note = ", one weight scale per group"
    rows = weight.values.reshape(out_channels, -1)
    usable = np.isfinite(steps) & (steps > 0)
    divisor = np.where(usable, steps, 1)[:, None]
    # the plan's own rounding (half to even), so that the weights are those of its fake-quantized reference
    integers = np.where(usable[:, None], np.clip(np.rint(rows / divisor), -127, 127), 0).astype(np.int8)
    # a scale of 0 tells ncnn that the channel is zero
    scales = np.where(usable, 1 / divisor[:, 0], 0).astype(np.float32)
    if groups != out_channels:
        scales = scales[:: out_channels // groups]
    if _takes_winograd(layer) and largest_accumulator(integers, non_negative) > WINOGRAD_LIMIT:
        layer.set(31, layer.integer(31) | _NO_WINOGRAD)
        note += ", without Winograd (its 32-bit sums could overflow)"
    model.weights[layer.name] = [Weight.int8(integers), *bias, Weight.raw(scales), Weight.raw([scale])]
    layer.set(8, 1 if layer.type == "ConvolutionDepthWise" else 2)
    return note


def _fuse_requantize(
    result: Quantized,
    nodes: Mapping[str, NodeProto],
    input_scale: Mapping[str, np.float32],
    input_step: Mapping[str, float],
) -> None:
    """Keep integers between layers where every reader of a blob wants the same integers."""
    readers = result.model.readers()
    for layer in result.model.layers:
        if layer.name not in input_scale or layer.type not in _REQUANTIZABLE:
            continue
        blob = layer.tops[0]
        following = readers[blob]
        if any(reader.name not in input_scale or reader.type not in _REQUANTIZABLE for reader in following):
            continue
        scales = {input_scale[reader.name] for reader in following}
        if len(scales) != 1 or result.model.output_behind(blob):
            continue
        layer.set(8, layer.integer(8) + 100)
        result.model.weights[layer.name].append(Weight.raw([*scales]))
        _mark_integer(result, blob, input_step[following[0].name])
        result.explanation[nodes[layer.name].name] += ", output stays int8"


def _mark_integer(result: Quantized, blob: str, step: float) -> None:
    result.steps[blob] = step
    for layer in result.model.layers:
        if layer.type == "Split" and blob in layer.bottoms:
            for top in layer.tops:
                _mark_integer(result, top, step)


def _takes_winograd(layer: Layer) -> bool:
    """Whether ncnn may run a dense 3×3 convolution of stride and dilation 1 by Winograd F(4×4, 3×3)."""
    if layer.type != "Convolution":
        return False
    width, dilation, stride = layer.integer(1), layer.integer(2, 1), layer.integer(3, 1)
    size = (width, layer.integer(11, width))
    steps = (dilation, layer.integer(12, dilation), stride, layer.integer(13, stride))
    return size == (3, 3) and steps == (1, 1, 1, 1)


def largest_accumulator(integers: npt.NDArray[np.int8], non_negative: bool) -> int:
    """Bound of |Σ q_w · q_x| over the output channels ``[out, …]`` for q_x in ±127, or in 0..127."""
    wide = integers.astype(np.int64)
    up, down = np.maximum(wide, 0).sum(1), np.maximum(-wide, 0).sum(1)
    sums = np.maximum(up, down) if non_negative else up + down
    return int(sums.max(initial=0)) * 127


def _non_negative(node: NodeProto, graph: Graph) -> bool:
    """Whether a node's input cannot be negative, as far as the ops before it tell."""
    return _tensor_non_negative(str(node.input[0]), graph)


def _tensor_non_negative(tensor: str, graph: Graph) -> bool:
    maker = graph.producer.get(tensor)
    if maker is None:
        return False
    if maker.op_type in _NON_NEGATIVE:
        return True
    if maker.op_type == "Clip":
        low = graph.initializers.get(maker.input[1]) if len(maker.input) > 1 else attributes(maker).get("min")
        return low is not None and float(np.min(low)) >= 0
    if maker.op_type in _KEEPS_SIGN:
        sources = maker.input if maker.op_type == "Concat" else maker.input[:1]
        return all(_tensor_non_negative(str(source), graph) for source in sources)
    return False
