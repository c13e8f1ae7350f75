"""`QuantPlan`: a scheme, the ranges chosen for one graph, and what stays in float and why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgevision.errors import CalibrationError
from edgevision_calibration.scheme import QuantScheme, scheme_for

if TYPE_CHECKING:
    from onnx import NodeProto


@dataclass(frozen=True)
class ActivationQuant:
    """``real = scale · (q − zero_point)``, with q in the scheme's range."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class QuantPlan:
    """How one graph is quantized for one target.

    Attributes:
        scheme: the target's scheme.
        activations: tensor name → scale and zero point, for every tensor that is quantized.
        weights: initializer name → float32 scales ``[out_channels]`` (or ``[1]`` per tensor);
            ``q = clip(round(w / scale), -127, 127)``.
        float_ops: node name → why the node stays in float.
        graph_sha256: the graph it belongs to.
        calibration: where the ranges came from: images, method, hash of the preprocess.
        biases: node name → float32 bias ``[out_channels]`` that takes the place of the node's own.
    """

    scheme: QuantScheme
    activations: Mapping[str, ActivationQuant]
    weights: Mapping[str, npt.NDArray[np.float32]]
    float_ops: Mapping[str, str]
    graph_sha256: str
    calibration: Mapping[str, Any] = field(default_factory=dict)
    biases: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    def reads_rounded(self, node: NodeProto, position: int) -> bool:
        """Whether a node reads an input of its in rounded form, rather than in float."""
        if node.input[position] not in self.activations:
            return False
        on_integers = len(node.input) > 1 and node.input[1] in self.weights and node.name not in self.float_ops
        return (position == 0 and on_integers) or not self.scheme.layers_round_alone

    def to_json(self) -> str:
        """The plan as JSON; `from_json` reads it back exactly."""
        values = {
            "target": self.scheme.target,
            "graph_sha256": self.graph_sha256,
            "calibration": dict(self.calibration),
            "activations": {name: [quant.scale, quant.zero_point] for name, quant in self.activations.items()},
            # float32 → float64 → repr → float64 → float32 is exact
            "weights": {name: [float(scale) for scale in scales] for name, scales in self.weights.items()},
            "float_ops": dict(self.float_ops),
            "biases": {name: [float(value) for value in bias] for name, bias in self.biases.items()},
        }
        return json.dumps(values, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> QuantPlan:
        """Read what `to_json` wrote.

        Raises:
            CalibrationError: the text is no plan.
        """
        try:
            values = json.loads(text)
            return cls(
                scheme=scheme_for(values["target"]),
                activations={
                    name: ActivationQuant(float(scale), int(zero_point))
                    for name, (scale, zero_point) in values["activations"].items()
                },
                weights={name: np.asarray(scales, np.float32) for name, scales in values["weights"].items()},
                float_ops=dict(values["float_ops"]),
                graph_sha256=str(values["graph_sha256"]),
                calibration=dict(values["calibration"]),
                biases={name: np.asarray(bias, np.float32) for name, bias in values["biases"].items()},
            )
        except (ValueError, KeyError, TypeError) as error:
            raise CalibrationError(f"the quantization plan is damaged: {error}") from error
