"""How much rounding noise in each channel of each tensor disturbs the outputs, from the weights alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgevision.graph import Graph
from edgevision_calibration.planning import clip_bounds
from edgevision_calibration.samples import ChannelSamples
from edgevision_calibration.weights import per_input

if TYPE_CHECKING:
    from onnx import NodeProto

Gain = npt.NDArray[np.float64]


def noise_gains(graph: Graph, samples: Mapping[str, ChannelSamples]) -> dict[str, Gain]:
    """Power of the outputs' disturbance per power of noise in a channel, float64 ``[C]`` by tensor.

    Each output counts relative to its own power. Noise is taken to be independent between channels and
    positions, so that through a linear node gains multiply with squared weights, and a Relu or Clip passes the
    share of the values that lies inside it. Between the channels of one tensor, where it is used, this
    follows the true gradient closely; between distant tensors it does not.
    """
    gains: dict[str, Gain] = {}
    for name in graph.output_names:
        if name in samples:
            size = samples[name].values.shape[1]
            gains[name] = np.full(size, 1.0 / max(float(samples[name].power.sum()), 1e-30))
    for node in reversed(graph.nodes):
        arriving = next((gains[name] for name in node.output if name in gains), None)
        if arriving is None:
            continue
        for name, gain in _through(graph, node, arriving, samples).items():
            gains[name] = gains.get(name, np.zeros(len(gain))) + gain
    return gains


def _through(graph: Graph, node: NodeProto, gain: Gain, samples: Mapping[str, ChannelSamples]) -> dict[str, Gain]:
    """Gains of a node's inputs, given that of its output."""
    inputs = [name for name in node.input if name and name not in graph.initializers]
    channels = {name: _channels(graph, name) for name in inputs}
    if node.op_type in {"Conv", "Gemm"} and node.input[1] in graph.initializers:
        power = np.square(per_input(graph.initializers[node.input[1]], node), dtype=np.float64).sum(axis=3)
        return {inputs[0]: np.einsum("goi,go->gi", power, gain.reshape(power.shape[:2])).reshape(-1)}
    if node.op_type in {"Relu", "Clip"} and node.output[0] in samples:
        low, high = clip_bounds(graph, node)
        values = samples[node.output[0]].values
        return {inputs[0]: gain * ((values > low) & (values < high)).mean(axis=0)}
    if node.op_type in {"GlobalAveragePool", "ReduceMean"} and channels[inputs[0]] == len(gain):
        return {inputs[0]: gain / max(_pixels(graph, inputs[0]) / _pixels(graph, node.output[0]), 1.0)}
    if node.op_type == "Concat" and sum(channels.values()) == len(gain):
        ends = np.cumsum([channels[name] for name in node.input])
        return dict(zip(node.input, np.split(gain, ends[:-1]), strict=True))
    # whatever else there is: channel by channel where the channels agree, else spread evenly
    return {
        name: gain if channels[name] == len(gain) else np.full(channels[name], gain.sum() / channels[name])
        for name in inputs
    }


def _channels(graph: Graph, name: str) -> int:
    shape = graph.shapes.get(name, ())
    return int(shape[1] or 1) if len(shape) > 1 else 1


def _pixels(graph: Graph, name: str) -> float:
    return float(np.prod([size or 1 for size in graph.shapes.get(name, ())[2:]]))
