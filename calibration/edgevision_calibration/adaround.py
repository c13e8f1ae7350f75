"""AdaRound: each weight learns whether to round up or down, and what is learned behind it may still change its mind.

Source: Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, arXiv 2004.10568, section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from edgevision.graph import Graph
from edgevision_calibration.plan import QuantPlan
from edgevision_calibration.torch_graph.fake_quant import WEIGHT_LIMIT, FakeQuantGraph
from edgevision_calibration.weights import along, weight_axis

if TYPE_CHECKING:
    from onnx import NodeProto

# the paper's stretch of the sigmoid, which lets h reach 0 and 1
_ZETA, _GAMMA = 1.1, -0.1
# of a step: so near to the middle between two integers a weight may lie and still clearly belong to one
_NEAR_EDGE = 0.45


class SoftRounding(nn.Module):
    """⌊w/s⌋ + h(V), with h between 0 and 1; begins at w itself.

    Args:
        ratio: w / s, any shape.
    """

    floor: Tensor

    def __init__(self, ratio: Tensor) -> None:
        super().__init__()
        self.register_buffer("floor", torch.floor(ratio))
        share = (ratio - self.floor).clamp(1e-4, 1 - 1e-4)
        self.logits = nn.Parameter(torch.logit((share - _GAMMA) / (_ZETA - _GAMMA)))

    @property
    def share(self) -> Tensor:
        """h(V): the rectified sigmoid (equation 23), same shape as the weight."""
        return torch.clamp(torch.sigmoid(self.logits) * (_ZETA - _GAMMA) + _GAMMA, 0.0, 1.0)

    def soft(self) -> Tensor:
        """Between two integers, differentiable."""
        return torch.clamp(self.floor + self.share, -WEIGHT_LIMIT, WEIGHT_LIMIT)

    def hard(self) -> Tensor:
        """The integer chosen."""
        return torch.clamp(self.floor + (self.share >= 0.5), -WEIGHT_LIMIT, WEIGHT_LIMIT)

    def undecided(self, exponent: float) -> Tensor:
        """Σ 1 − |2h − 1|^β: zero where every weight has decided (equation 24)."""
        return (1.0 - (2.0 * self.share - 1.0).abs().pow(exponent)).sum()


class RoundingGraph(FakeQuantGraph):
    """A quantized graph whose weights choose their rounding; biases and activation steps learn beside them."""

    def __init__(self, graph: Graph, plan: QuantPlan) -> None:
        super().__init__(graph, plan, learn=frozenset({"weights", "activation_steps"}))
        self.roundings = nn.ModuleList()
        self._rounding_place: dict[str, int] = {}
        self.decided: set[str] = set()
        for name, node in self._layers.items():
            weight = self.constant(node.input[1])
            self._rounding_place[name] = len(self.roundings)
            self.roundings.append(SoftRounding(weight / self._scales[name]))

    def rounding(self, node: NodeProto) -> SoftRounding:
        """The rounding of a quantized node's weight."""
        found = self.roundings[self._rounding_place[node.name]]
        assert isinstance(found, SoftRounding)
        return found

    def weight(self, node: NodeProto) -> Tensor:
        """Softly rounded until the node is `decide`-d."""
        rounding = self.rounding(node)
        integers = rounding.hard() if node.name in self.decided else rounding.soft()
        return integers * self._scales[node.name]

    def decide(self, nodes: Iterable[NodeProto]) -> None:
        """Round the weights of ``nodes`` for good."""
        self.decided.update(node.name for node in nodes)

    def parameters_of(self, nodes: Iterable[NodeProto]) -> dict[str, list[nn.Parameter]]:
        """``roundings``, ``biases`` and ``steps`` that ``nodes`` use."""
        found: dict[str, list[nn.Parameter]] = {"roundings": [], "biases": [], "steps": []}
        steps: dict[int, nn.Parameter] = {}
        for node in nodes:
            if node.name in self._layers:
                found["roundings"].append(self.rounding(node).logits)
                bias = self.bias_changes[self._layer_place[node.name]]
                if bias.numel():
                    found["biases"].append(bias)
            for name in node.input:
                if name in self._group_of:
                    place = self._step_place[self._group_of[name][0]]
                    steps[place] = self.step_changes[place]
        found["steps"] = list(steps.values())
        return found


def loosened(graph: Graph, rounded: Graph, plan: QuantPlan) -> tuple[Graph, QuantPlan]:
    """A net with learned rounding whose weights lie as near to those in float as still rounds to what was learned.

    On their grid, where the learning of roundings leaves them, weights are half a step from changing; here those whose
    rounding hardly matters are near the edge, so that training which follows can still decide about them.

    Args:
        graph: the weights in float.
        rounded: the same net with weights on the grid of ``plan``.
        plan: the plan of ``rounded``.
    """
    axes = {node.input[1]: weight_axis(node) for node in graph.nodes if len(node.input) > 1}
    near = {}
    for name, scales in plan.weights.items():
        weight = graph.initializers[name].astype(np.float64)
        steps = along(np.asarray(scales, np.float64), axes[name] if len(scales) > 1 else 0, weight.ndim)
        integers = np.rint(rounded.initializers[name] / steps)
        near[name] = (np.clip(weight / steps, integers - _NEAR_EDGE, integers + _NEAR_EDGE) * steps).astype(np.float32)
    loose = rounded.with_initializers(near)
    return loose, replace(plan, graph_sha256=loose.sha256)
