"""Per-layer sensitivity: how much the outputs suffer when one layer alone is quantized."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgevision.errors import CalibrationError
from edgevision.graph import Graph
from edgevision.progress import Progress
from edgevision_calibration.float_cost import macs
from edgevision_calibration.observe import activated, open_session
from edgevision_calibration.plan import QuantPlan

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

# pictures that are enough to rank layers by: with 8 and 16 of them MobileNetV2's worst five are the same
PICTURES = 16
# ratios of powers are kept within this, as in `edgevision.parity`
_MAX_DB = 150.0

# a plan written into its graph, to be run in float: `edgevision_converters.qdq.quantize_dequantize`
Lower = Callable[[Graph, QuantPlan], "ModelProto"]
Outputs = dict[str, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class LayerSensitivity:
    """What quantizing one layer alone does to the outputs.

    Attributes:
        node: the compute node.
        op: its type.
        sqnr_db: signal-to-noise ratio of the outputs with this node quantized and all others in float, dB: the
            lower, the more it harms. Of several outputs the one where it is least.
        share: its noise as a share of that of all layers, 0..1.
        macs: multiply-accumulates of the node for one picture.
    """

    node: str
    op: str
    sqnr_db: float
    share: float
    macs: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        return asdict(self)


@dataclass(frozen=True)
class Sensitivity:
    """Every quantized layer, the most harmful first, and what the whole plan does.

    Attributes:
        target: engine the plan is for.
        layers: ordered by ``sqnr_db``, least first; ties in the order of the graph.
        sqnr_db: with everything the plan quantizes, dB.
        sum_db: what the layers' noise would add up to if they were independent, dB: near ``sqnr_db`` where the
            ranking can be relied on.
        pictures: how many it was measured on.
    """

    target: str
    layers: tuple[LayerSensitivity, ...]
    sqnr_db: float
    sum_db: float
    pictures: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        return {**asdict(self), "layers": [layer.to_dict() for layer in self.layers]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Sensitivity:
        """Build from plain values."""
        layers = tuple(LayerSensitivity(**layer) for layer in values["layers"])
        return cls(**{**values, "layers": layers})


def measure_sensitivity(
    graph: Graph,
    plan: QuantPlan,
    pictures: Sequence[npt.NDArray[np.float32]],
    lower: Lower,
    *,
    threads: int = 0,
    before_each: Callable[[], None] | None = None,
) -> Sensitivity:
    """Quantize each compute node of ``plan`` alone, with the plan's own scales, and compare the outputs with float.

    One layer quantized in a float net is preferred to one layer left in float in a quantized one: its effect is
    measured against silence instead of as the difference of two noises, so few pictures tell it well. What it
    cannot see is how layers' errors cancel or feed each other; ``sum_db`` beside ``sqnr_db`` shows how far that goes.

    Source: H. Wu et al., Integer Quantization for Deep Learning Inference, arXiv 2004.09602, section 4.4
    ("sensitivity analysis"), with the noise of the outputs in place of the accuracy.

    Args:
        graph: the graph the plan belongs to.
        plan: which nodes are quantized, and how.
        pictures: preprocessed, float32 ``[B, C, H, W]`` each; `PICTURES` are enough.
        lower: writes a plan into its graph.
        threads: ONNX Runtime's threads; 0 for all cores.
        before_each: called before each layer; what it raises ends the measurement.

    Raises:
        CalibrationError: no pictures, or the plan quantizes no compute node.
    """
    nodes = quantized_nodes(graph, plan)
    if not pictures:
        raise CalibrationError("there are no pictures to measure the sensitivity on")
    if not nodes:
        raise CalibrationError(f"the plan for {plan.scheme.target} quantizes no layer: there is nothing to rank")
    expected = _run(graph.to_bytes(), graph, pictures, threads)

    def noise_of(part: QuantPlan) -> float:
        made = _run(lower(graph, part).SerializeToString(), graph, pictures, threads)
        return _relative_noise(expected, made)

    noises = []
    with Progress("sensitivity", len(nodes)) as progress:
        for node in nodes:
            if before_each is not None:
                before_each()
            noises.append(noise_of(only(graph, plan, node)))
            progress.advance(status=node.name)
    total = sum(noises) or 1.0
    layers = [
        LayerSensitivity(node.name, node.op_type, _decibel(noise), noise / total, macs(graph, node))
        for node, noise in zip(nodes, noises, strict=True)
    ]
    # sorted() is stable: ties keep the order of the graph
    ranked = tuple(sorted(layers, key=lambda layer: layer.sqnr_db))
    count = sum(len(picture) for picture in pictures)
    return Sensitivity(plan.scheme.target, ranked, _decibel(noise_of(plan)), _decibel(sum(noises)), count)


def unranked(graph: Graph, plan: QuantPlan) -> tuple[LayerSensitivity, ...]:
    """The layers of ``plan`` in the order of the graph, as if none of them did harm: where nobody asks for more."""
    nodes = quantized_nodes(graph, plan)
    return tuple(LayerSensitivity(node.name, node.op_type, _MAX_DB, 0.0, macs(graph, node)) for node in nodes)


def quantized_nodes(graph: Graph, plan: QuantPlan) -> list[NodeProto]:
    """Compute nodes that ``plan`` runs on integers, in topological order."""
    return [
        node
        for node in graph.nodes
        if len(node.input) > 1
        and node.input[1] in plan.weights
        and node.input[0] in plan.activations
        and node.name not in plan.float_ops
    ]


def only(graph: Graph, plan: QuantPlan, node: NodeProto) -> QuantPlan:
    """The plan with one compute node quantized, its input and output included, and all else in float."""
    touched = {node.input[0], activated(graph, node)}
    others = {other.name: "another layer is examined" for other in quantized_nodes(graph, plan) if other is not node}
    return replace(
        plan,
        activations={name: quant for name, quant in plan.activations.items() if name in touched},
        weights={node.input[1]: plan.weights[node.input[1]]},
        biases={name: bias for name, bias in plan.biases.items() if name == node.name},
        float_ops={**plan.float_ops, **others},
    )


def _run(model: bytes, graph: Graph, pictures: Sequence[npt.NDArray[np.float32]], threads: int) -> Outputs:
    # optimized: a quantized layer becomes an integer kernel, which differs from the plan's reference by less than
    # the layer's own noise, and the float rest runs three times faster than as written
    session = open_session(model, threads=threads)
    runs = [session.run(graph.output_names, {graph.input_name: picture}) for picture in pictures]
    return {
        name: np.concatenate([np.asarray(run[index], np.float64) for run in runs])
        for index, name in enumerate(graph.output_names)
    }


def _relative_noise(expected: Outputs, made: Outputs) -> float:
    """Noise power per signal power of the output where it is greatest."""
    ratios = []
    for name, values in expected.items():
        signal, noise = float(np.square(values).sum()), float(np.square(made[name] - values).sum())
        if signal > 0:
            ratios.append(noise / signal)
    worst = max(ratios, default=0.0)
    return worst if np.isfinite(worst) else 10 ** (_MAX_DB / 10)


def _decibel(noise: float) -> float:
    """Signal-to-noise ratio in dB of noise relative to the signal."""
    return float(np.clip(-10.0 * np.log10(noise), -_MAX_DB, _MAX_DB)) if noise > 0 else _MAX_DB
