"""AdaRound: each weight learns whether to round up or down.

Source: Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, arXiv 2004.10568, section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgevision.graph import Graph
from edgevision_calibration.plan import QuantPlan
from edgevision_calibration.torch_graph.fake_quant import WEIGHT_LIMIT, FakeQuantGraph

if TYPE_CHECKING:
    from onnx import NodeProto

# the paper's stretch of the sigmoid, which lets h reach 0 and 1
_ZETA, _GAMMA = 1.1, -0.1


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
