"""A `QuantPlan` executed in torch: the same integers as Q/DQ in ONNX Runtime, with gradients straight through rounding.

Source: learned steps ("LSQ"), Esser et al., arXiv 1902.08153, section 2.1.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from edgevision.graph import Graph
from edgevision_calibration.plan import ActivationQuant, QuantPlan
from edgevision_calibration.planning import clip_bounds
from edgevision_calibration.torch_graph.module import TorchGraph
from edgevision_calibration.weights import LEAST_SCALE, along, weight_axis

if TYPE_CHECKING:
    from onnx import NodeProto

WEIGHT_LIMIT = 127.0
# ops whose output lies on the grid of their input, so that their tensors share one scale where the plan says so
_GRID_KEEPING = frozenset({"MaxPool", "Concat"})
# the standard deviation of an output is about a thousand accumulator units times √fan-in: a bias moves in hundredths
_BIAS_UNITS = 10.0


class _FakeQuantize(torch.autograd.Function):
    """q = clamp(round(x / s) + z, low, high); s · (q − z). Half rounds to even, as QuantizeLinear does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: float, low: float, high: float) -> Tensor:
        """Broadcasts ``scale`` against ``x``."""
        ratio = x / scale
        rounded = torch.clamp(torch.round(ratio), low - zero_point, high - zero_point)
        ctx.save_for_backward(ratio, rounded, scale)
        ctx.bounds = (low - zero_point, high - zero_point)
        return rounded * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Straight through inside the range; the step's is LSQ's equation 3."""
        ratio, rounded, scale = ctx.saved_tensors
        low, high = ctx.bounds
        inside = (ratio >= low) & (ratio <= high)
        of_scale = None
        if ctx.needs_input_grad[1]:
            slope = torch.where(inside, rounded - ratio, rounded)
            of_scale = (gradients[0] * slope).sum_to_size(scale.shape)
        return gradients[0] * inside, of_scale, None, None, None


def fake_quantize(x: Tensor, scale: Tensor, zero_point: float, low: float, high: float) -> Tensor:
    """``x`` on the grid ``scale · (q − zero_point)``, q a whole number in low..high; differentiable in x and scale."""
    out: Tensor = _FakeQuantize.apply(x, scale, zero_point, low, high)  # type: ignore[no-untyped-call]
    return out


class FakeQuantGraph(TorchGraph):
    """A graph as ``plan`` would have an engine run it; equal to the Q/DQ model run in float.

    Every learnable is a change in units of what it changes, zero at the beginning, so that one learning rate fits
    all, and a network whose channels were rescaled learns the same: weights in their channel's step, biases in a
    hundredth of about the output's deviation, steps in the logarithm.

    Args:
        graph: the graph the plan belongs to.
        plan: scales, biases and what stays in float.
        learn: which of ``weights`` (of quantized nodes, with their biases), ``weight_steps`` and
            ``activation_steps`` are trained.
    """

    def __init__(self, graph: Graph, plan: QuantPlan, *, learn: frozenset[str] = frozenset()) -> None:
        super().__init__(graph)
        self.plan = plan
        # QuantizeLinear saturates at the type's ends, also where the scheme's scale leaves −128 unused
        self.activation_bounds = (-128.0, 127.0) if plan.scheme.symmetric else (0.0, 255.0)
        self._group_of = shared_groups(graph, plan)
        self._steps = {group[0]: torch.tensor(plan.activations[group[0]].scale) for group in self._group_of.values()}
        self._most = {first: _greatest_step(graph, plan, self._group_of[first]) for first in self._steps}
        self.step_changes = nn.ParameterList()
        self._step_place: dict[str, int] = {}
        self.weight_changes, self.bias_changes = nn.ParameterList(), nn.ParameterList()
        self.weight_step_changes = nn.ParameterList()
        self._layer_place: dict[str, int] = {}
        self._layers = {node.name: node for node in self.nodes if is_quantized(plan, node)}
        self._scales = {name: self._scale_of(node) for name, node in self._layers.items()}
        self._make_parameters(learn)

    def _make_parameters(self, learn: frozenset[str]) -> None:
        for first in self._steps:
            self._step_place[first] = len(self.step_changes)
            self.step_changes.append(nn.Parameter(torch.zeros(()), "activation_steps" in learn))
        for name, node in self._layers.items():
            self._layer_place[name] = len(self.weight_changes)
            bias = self._bias_constant(node)
            self.weight_changes.append(nn.Parameter(torch.zeros_like(self.constant(node.input[1])), "weights" in learn))
            self.bias_changes.append(nn.Parameter(torch.zeros_like(bias), "weights" in learn))
            self.weight_step_changes.append(nn.Parameter(torch.zeros_like(self._scales[name]), "weight_steps" in learn))

    def _scale_of(self, node: NodeProto) -> Tensor:
        """Weight steps, shaped to broadcast against the weight."""
        scales = self.plan.weights[node.input[1]]
        rank = self.constant(node.input[1]).ndim
        return torch.from_numpy(along(np.array(scales, np.float32), weight_axis(node) if len(scales) > 1 else 0, rank))

    def _bias_constant(self, node: NodeProto) -> Tensor:
        if len(node.input) < 3 or not node.input[2]:
            return torch.zeros(0)
        shape = self.constant(node.input[2]).shape
        if node.name in self.plan.biases:
            return torch.from_numpy(np.array(self.plan.biases[node.name], np.float32)).reshape(shape)
        return self.constant(node.input[2])

    def operand(self, node: NodeProto, position: int, held: dict[Any, Tensor]) -> Tensor | None:
        """Quantized weight and bias of a compute node, the dequantized form of an activation."""
        name = str(node.input[position])
        if node.name in self._layers and position in {1, 2} and name:
            return self.weight(node) if position == 1 else self.bias(node)
        if self.plan.reads_rounded(node, position) and not self.is_constant(name):
            key = (name, "dequantized")
            if key not in held:
                held[key] = self.quantize_activation(name, held[name])
            return held[key]
        return super().operand(node, position, held)

    def forget(self, name: str, held: dict[Any, Tensor]) -> None:
        """Let go of a tensor and its dequantized form."""
        super().forget(name, held)
        held.pop((name, "dequantized"), None)

    def activation_step(self, name: str) -> Tensor:
        """The step of an activation, learned or not."""
        first = self._group_of[name][0]
        step = self._steps[first] * torch.exp(self.step_changes[self._step_place[first]])
        # beyond the Clip before it there is nothing to represent, and the engine could no longer drop the Clip
        return torch.clamp(step, max=self._most[first])

    def quantize_activation(self, name: str, value: Tensor) -> Tensor:
        """An activation on its grid."""
        zero_point = float(self.plan.activations[name].zero_point)
        return fake_quantize(value, self.activation_step(name), zero_point, *self.activation_bounds)

    def weight_step(self, node: NodeProto) -> Tensor:
        """Steps of a node's weight, shaped to broadcast against it."""
        change: Tensor = self.weight_step_changes[self._layer_place[node.name]]
        return self._scales[node.name] * torch.exp(change)

    def raw_weight(self, node: NodeProto) -> Tensor:
        """A node's weight before rounding."""
        change: Tensor = self.weight_changes[self._layer_place[node.name]]
        weight = self.constant(node.input[1])
        return weight + change * self._scales[node.name]

    def weight(self, node: NodeProto) -> Tensor:
        """A node's weight on its grid."""
        return fake_quantize(self.raw_weight(node), self.weight_step(node), 0.0, -WEIGHT_LIMIT, WEIGHT_LIMIT)

    def raw_bias(self, node: NodeProto) -> Tensor:
        """A node's bias before rounding."""
        change: Tensor = self.bias_changes[self._layer_place[node.name]]
        return self._bias_constant(node) + change * self._bias_unit(node)

    def _bias_unit(self, node: NodeProto) -> Tensor:
        """What a bias change of 1 means, in the shape of the bias."""
        bias = self._bias_constant(node)
        fan_in = self.constant(node.input[1]).numel() / max(bias.numel(), 1)
        factor = self.plan.activations[node.input[0]].scale * _BIAS_UNITS * math.sqrt(fan_in)
        return (self._scales[node.name].reshape(-1) * factor).expand(bias.numel()).reshape(bias.shape)

    @torch.no_grad()
    def shift_bias(self, node: NodeProto, shift: Tensor) -> None:
        """Add ``shift`` ``[out_channels]`` to a node's bias."""
        change: Tensor = self.bias_changes[self._layer_place[node.name]]
        change.add_(shift.reshape(change.shape) / self._bias_unit(node))

    def bias(self, node: NodeProto) -> Tensor:
        """A node's bias, as int32 where the scheme quantizes it."""
        bias = self.raw_bias(node)
        if not self.plan.scheme.quantize_bias:
            return bias
        with torch.no_grad():
            scale = (self.activation_step(node.input[0]) * self.weight_step(node).reshape(-1)).reshape(
                bias.shape if self._scales[node.name].numel() > 1 else 1
            )
            integers = torch.round(bias.double() / scale.double()).clamp(-(2.0**31), 2.0**31 - 1)
            rounding = integers.float() * scale - bias
        return bias + rounding

    @torch.no_grad()
    def learned(self) -> tuple[Graph, QuantPlan]:
        """Graph and plan with everything that was learned, weights lying on their grid.

        Weights become exactly ``step · q``: whoever rounds them to nearest gets q, so that every engine runs the
        rounding that was learned.
        """
        weights, biases, constants = dict(self.plan.weights), dict(self.plan.biases), {}
        for name, node in self._layers.items():
            weights[node.input[1]] = self.weight_step(node).reshape(-1).clamp(min=LEAST_SCALE).numpy().copy()
            constants[node.input[1]] = self.weight(node).numpy().copy()
            if len(node.input) > 2 and node.input[2]:
                biases[name] = self.raw_bias(node).reshape(-1).numpy().copy()
        graph = self.graph.with_initializers(constants)
        activations = {
            name: ActivationQuant(float(self.activation_step(name)), quant.zero_point)
            for name, quant in self.plan.activations.items()
        }
        plan = replace(self.plan, activations=activations, weights=weights, biases=biases, graph_sha256=graph.sha256)
        return graph, plan


def is_quantized(plan: QuantPlan, node: NodeProto) -> bool:
    """Whether ``plan`` gives a node an integer weight."""
    return len(node.input) > 1 and node.input[1] in plan.weights and node.name not in plan.float_ops


def shared_groups(graph: Graph, plan: QuantPlan) -> dict[str, list[str]]:
    """Tensor of the plan → all tensors that share its scale, itself included; one list object per group."""
    group_of = {name: [name] for name in plan.activations}
    for node in graph.nodes:
        if node.op_type not in _GRID_KEEPING or node.output[0] not in group_of:
            continue
        for name in node.input:
            first, second = group_of[node.output[0]], group_of.get(name)
            if second is None or second is first:
                continue
            if plan.activations[name] == plan.activations[node.output[0]]:
                merged = first + second
                group_of.update(dict.fromkeys(merged, merged))
    return group_of


def _greatest_step(graph: Graph, plan: QuantPlan, group: list[str]) -> float:
    """The step whose range ends at the Clip or Relu that made the tensors; infinite where there is none."""
    ends = []
    for name in group:
        producer = graph.producer.get(name)
        high = clip_bounds(graph, producer)[1] if producer is not None and producer.op_type == "Clip" else math.inf
        ends.append(high)
    quant = plan.activations[group[0]]
    levels = plan.scheme.quant_range[1] - quant.zero_point
    end = max(ends) / max(levels, 1)
    # float32 of the plan's own scale may lie a hair above the quotient
    return max(end, quant.scale) if math.isfinite(end) else math.inf
