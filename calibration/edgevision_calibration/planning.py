"""From what was observed to a `QuantPlan`: which tensors carry integers for a target, and with which scale."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgevision.graph import Graph, attributes
from edgevision_calibration.bias_correction import corrected_biases
from edgevision_calibration.integer_flow import GRID_KEEPING_OPS, data_inputs, quantized_tensors
from edgevision_calibration.mixed_precision import Precise, precise_layers, stem_layers, thin_layers
from edgevision_calibration.observe import CLIPPING_OPS, activated
from edgevision_calibration.plan import ActivationQuant, QuantPlan
from edgevision_calibration.ranges import range_method
from edgevision_calibration.scheme import COMPUTE_OPS, QuantScheme
from edgevision_calibration.table import CalibrationTable
from edgevision_calibration.tail import tail_of
from edgevision_calibration.weights import LEAST_SCALE, weight_scales

if TYPE_CHECKING:
    from onnx import NodeProto

_STEM_REASON = "so few channels run about as fast in float"
_DECODES_REASON = "it decodes what the last layers give"
# a channel of a last layer's output has at least so many of its steps, or the output stays in float
_LEAST_LEVELS = 64
_THIN_REASON = "rounding its input would take the time that its integers save"


def make_plan(
    graph: Graph,
    table: CalibrationTable,
    scheme: QuantScheme,
    *,
    ranges: str | Mapping[str, str] = "mse",
    keep_float: Mapping[str, str] | None = None,
    bias_correction: bool = True,
    precise: bool = True,
) -> QuantPlan:
    """Choose scales for every tensor that ``scheme`` wants in integers.

    Args:
        graph: the canonical graph the table was taken on.
        table: its statistics.
        scheme: the target's scheme.
        ranges: name of a range method, one of `RANGE_METHODS`, or tensor name → method, as
            `edgevision_calibration.ranges.auto.choose_ranges` finds them; tensors without one take ``mse``.
        keep_float: node name → why the user or a search keeps it in float.
        bias_correction: whether biases take back what rounding the weights does to the mean of an output.
        precise: whether the few layers that cost most accuracy for the time they save stay in float, see
            `edgevision_calibration.mixed_precision.precise_layers`.

    Raises:
        UsageError: no such range method.
        CalibrationError: a tensor was not observed.
    """
    decoders = dict.fromkeys(tail_of(graph).decoders, _DECODES_REASON)
    float_ops = {**_quick_in_float(graph, scheme), **decoders, **(keep_float or {})}
    compute = [node for node in graph.nodes if _takes_integers(graph, node, scheme, float_ops)]
    chosen = _Ranges(graph, table, scheme, ranges)
    exact = _exact(graph, table)
    if precise and table.noise_gains:
        found = _precise(graph, table, scheme, compute, float_ops, chosen, exact)
        float_ops.update({name: precision.reason for name, precision in found.items()})
        compute = [node for node in compute if node.name not in float_ops]
    activations = chosen.of(quantized_tensors(graph, compute, scheme, float_ops, exact))
    weights = {}
    for node in compute:
        weights[node.input[1]] = weight_scales(graph, node, scheme, activations[node.input[0]].scale)
    plan = QuantPlan(
        scheme,
        activations,
        weights,
        float_ops,
        graph.sha256,
        {
            "images": table.images,
            "ranges": ranges if isinstance(ranges, str) else dict(ranges),
            "preprocess_digest": table.preprocess_digest,
            "source": table.source,
            "bias_correction": bias_correction,
        },
    )
    return replace(plan, biases=corrected_biases(graph, plan, table)) if bias_correction else plan


class _Ranges:
    """The scale of every tensor."""

    def __init__(
        self, graph: Graph, table: CalibrationTable, scheme: QuantScheme, ranges: str | Mapping[str, str]
    ) -> None:
        self.graph = graph
        self.table = table
        self.scheme = scheme
        self.ranges = ranges

    def of(self, names: list[str]) -> dict[str, ActivationQuant]:
        """Scales of ``names``; those that must share one do."""
        activations: dict[str, ActivationQuant] = {}
        for group in _shared_scales(names, self.graph, self.scheme):
            low, high = 0.0, 0.0
            for name in group:
                method = range_method(self.ranges, name)
                tensor_low, tensor_high = self.table.interval(name, method, symmetric=self.scheme.symmetric)
                low, high = min(low, tensor_low), max(high, tensor_high)
            low, high = _within_clips(self.graph, group, low, high)
            activations.update(dict.fromkeys(group, activation_quant(low, high, self.scheme)))
        return activations


def _quick_in_float(graph: Graph, scheme: QuantScheme) -> dict[str, str]:
    """Layers that are as quick in float and stay so, and why; none where no layer would be left for integers."""
    candidates = {node.name for node in graph.nodes if _may_take_integers(graph, node, scheme)}
    found: dict[str, str] = {}
    for names, reason in (
        (stem_layers(graph, scheme.stem) if scheme.stem else [], _STEM_REASON),
        (thin_layers(graph, scheme.least_products), _THIN_REASON),
    ):
        also = {**found, **dict.fromkeys((name for name in names if name in candidates), reason)}
        if also.keys() < candidates:
            found = also
    return found


def _may_take_integers(graph: Graph, node: NodeProto, scheme: QuantScheme) -> bool:
    return node.op_type in scheme.compute_ops and (scheme.depthwise or not is_depthwise(graph, node))


def _precise(
    graph: Graph,
    table: CalibrationTable,
    scheme: QuantScheme,
    compute: list[NodeProto],
    float_ops: Mapping[str, str],
    ranges: _Ranges,
    exact: frozenset[str],
) -> dict[str, Precise]:
    """Layers that stay in float for accuracy."""

    def quantized(names: Collection[str]) -> list[str]:
        left = [node for node in compute if node.name not in names]
        return quantized_tensors(graph, left, scheme, {**float_ops, **dict.fromkeys(names, "")}, exact)

    steps = ranges.of(quantized(()))
    noise = {name: table.noise_gains.get(name, 0.0) * quant.scale**2 / 12 for name, quant in steps.items()}
    return precise_layers(graph, compute, noise, quantized, scheme)


def _takes_integers(graph: Graph, node: NodeProto, scheme: QuantScheme, float_ops: dict[str, str]) -> bool:
    """Whether a compute node runs on integers; where it does not, ``float_ops`` learns why."""
    if node.op_type not in COMPUTE_OPS or node.name in float_ops:
        return False
    if node.op_type not in scheme.compute_ops:
        float_ops[node.name] = f"{scheme.target} runs {node.op_type} in float"
    elif len(node.input) < 2 or node.input[1] not in graph.initializers or node.input[0] in graph.initializers:
        float_ops[node.name] = "its weight is not a constant"
    elif node.op_type == "Gemm" and not _is_plain_gemm(node):
        float_ops[node.name] = "a Gemm with alpha, beta or a transposed input"
    elif not scheme.depthwise and is_depthwise(graph, node):
        float_ops[node.name] = f"depthwise convolutions run faster in float on {scheme.target}"
    else:
        return True
    return False


def _is_plain_gemm(node: NodeProto) -> bool:
    values = attributes(node)
    return values.get("alpha", 1.0) == 1.0 and values.get("beta", 1.0) == 1.0 and not values.get("transA", 0)


def is_depthwise(graph: Graph, node: NodeProto) -> bool:
    """Whether a Conv has one input channel per group and more than one group."""
    return (
        node.op_type == "Conv"
        and attributes(node).get("group", 1) > 1
        and graph.initializers[node.input[1]].shape[1] == 1
    )


def _exact(graph: Graph, table: CalibrationTable) -> frozenset[str]:
    """Tensors behind the last layers that no scheme rounds: all but what a convolution makes of channels alike.

    Its integer kernel wants integers on both sides. Where a channel would have few of the common steps, as scores have
    beside sizes in pixels, the layer gives floats.
    """
    tail = tail_of(graph)
    last = [node for node in graph.nodes if node.op_type == "Conv" and tail.tensors & set(node.output)]
    made = {activated(graph, node) for node in last if node.name not in tail.decoders}
    return tail.tensors - {name for name in made if name is not None and _are_alike(table, name)}


def _are_alike(table: CalibrationTable, name: str) -> bool:
    if name not in table.tensors:
        return False
    seen = table[name]
    steps = max(seen.high, 0.0) - min(seen.low, 0.0)
    return bool(((seen.channel_high - seen.channel_low) * 255 >= _LEAST_LEVELS * steps).all())


def _shared_scales(names: list[str], graph: Graph, scheme: QuantScheme) -> list[list[str]]:
    """Group the tensors that must share one scale: what goes into and comes out of grid-keeping integer ops."""
    group_of = {name: [name] for name in names}
    for node in graph.nodes:
        if node.op_type not in GRID_KEEPING_OPS & scheme.integer_ops or node.output[0] not in group_of:
            continue
        for name in data_inputs(graph, node):
            if name in group_of and group_of[name] is not group_of[node.output[0]]:
                merged = group_of[node.output[0]] + group_of[name]
                group_of.update(dict.fromkeys(merged, merged))
    return list({id(group): group for group in group_of.values()}.values())


def _within_clips(graph: Graph, group: list[str], low: float, high: float) -> tuple[float, float]:
    """No range beyond the Clip or Relu that made the tensor: then the engine can drop the Clip."""
    lows, highs = [], []
    for name in group:
        producer = graph.producer.get(name)
        if producer is None or producer.op_type not in CLIPPING_OPS:
            return low, high
        lower, upper = clip_bounds(graph, producer)
        lows.append(lower)
        highs.append(upper)
    return max(low, min(lows)), min(high, max(highs))


def clip_bounds(graph: Graph, node: NodeProto) -> tuple[float, float]:
    """Least and greatest output of a Relu or Clip node."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    bounds = [-math.inf, math.inf]
    for position in (1, 2):
        if len(node.input) > position and node.input[position] in graph.initializers:
            bounds[position - 1] = float(graph.initializers[node.input[position]])
    return bounds[0], bounds[1]


def activation_quant(low: float, high: float, scheme: QuantScheme) -> ActivationQuant:
    """Scale and zero point that span ``[low, high]``, zero being exact."""
    least, greatest = scheme.quant_range
    if scheme.symmetric:
        return ActivationQuant(_float32(max(high, -low, LEAST_SCALE * greatest) / greatest), 0)
    if scheme.signed_symmetric and low < 0:
        middle = (greatest + 1) // 2
        return ActivationQuant(_float32(max(high / (greatest - middle), -low / middle, LEAST_SCALE)), middle)
    scale = _float32(max((high - low) / (greatest - least), LEAST_SCALE))
    return ActivationQuant(scale, int(np.clip(round(least - low / scale), least, greatest)))


def _float32(value: float) -> float:
    return float(np.float32(value))
