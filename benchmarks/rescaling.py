"""The same function with its channels scaled otherwise: random factors between layers, an identity in float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgevision.data import batches
from edgevision.data.base import Dataset
from edgevision.graph import Graph
from edgevision.preprocess import Preprocess
from edgevision_calibration.channels import channel_groups
from edgevision_calibration.equalization import rescale
from edgevision_calibration.observe import expose, open_session
from edgevision_calibration.planning import clip_bounds

GREATEST = 16.0
# kept free below a Clip, so that rounding does not make values meet it
_ROOM = 0.999


@dataclass(frozen=True)
class Rescaled:
    """A graph that computes what another one does.

    Attributes:
        graph: with other weights and biases.
        channels: between its layers: all that a convolution or linear layer makes, the last one's excepted.
        rescaled: how many of them have a factor other than 1.
    """

    graph: Graph
    channels: int
    rescaled: int


def seen_on(graph: Graph, datasets: Sequence[Dataset], preprocess: Preprocess) -> dict[str, npt.NDArray[np.float64]]:
    """Greatest value ``[C]`` of each channel in front of a Clip with an upper bound, over all pictures."""
    names = [node.input[0] for node in graph.nodes if node.op_type == "Clip" and clip_bounds(graph, node)[1] < np.inf]
    if not names:
        return {}
    session = open_session(expose(graph, names), threads=1)
    peaks: dict[str, npt.NDArray[np.float64]] = {}
    for dataset in datasets:
        for batch, _ in batches(dataset, preprocess, 50):
            for name, value in zip(names, session.run(names, {graph.input_name: batch}), strict=True):
                highest = value.max(axis=(0, 2, 3)).astype(np.float64)
                peaks[name] = np.maximum(peaks.get(name, highest), highest)
    return peaks


def rescaled(graph: Graph, peaks: Mapping[str, npt.NDArray[np.float64]], *, seed: int) -> Rescaled:
    """Multiply channels by factors log-uniform between 1/16 and 16, and divide the weights that read them.

    A channel that a Clip cuts keeps its scale; one that stays below it grows no further than to it. So the function
    is kept on the pictures that ``peaks`` are of.

    Args:
        graph: a canonical graph.
        peaks: of `seen_on`.
        seed: of the factors.
    """
    generator = np.random.default_rng(seed)
    chosen = []
    made: dict[str, npt.NDArray[np.bool_]] = {}
    for group in channel_groups(graph):
        if not (group.producers and group.consumers):
            continue
        least, greatest = np.full(group.size, 1 / GREATEST), np.full(group.size, GREATEST)
        for name, index in group.tensors.items():
            node = graph.producer.get(name)
            if node is None or node.op_type != "Clip" or node.input[0] not in peaks:
                continue
            peak, bound = peaks[node.input[0]], clip_bounds(graph, node)[1]
            room = np.where(peak < _ROOM * bound, _ROOM * bound / np.maximum(peak, 1e-9), 1.0)
            free = index >= 0
            np.minimum.at(greatest, index[free], room[free])
            # made smaller, a channel that is cut now would no longer be
            np.maximum.at(least, index[free], np.where(peak < _ROOM * bound, 1 / GREATEST, 1.0)[free])
        factors = np.exp(generator.uniform(np.log(least), np.log(np.maximum(greatest, least))))
        chosen.append((group, factors))
        for node in group.producers:
            index = group.tensors[node.output[0]]
            made[node.output[0]] = (index >= 0) & (factors[index] != 1.0)
    channels = sum(
        int(graph.shapes[node.output[0]][1] or 0)
        for node in graph.nodes
        if node.op_type in {"Conv", "Gemm"} and node.output[0] not in _last(graph)
    )
    return Rescaled(rescale(graph, chosen).graph, channels, sum(int(mask.sum()) for mask in made.values()))


def _last(graph: Graph) -> set[str]:
    """Tensors whose channels are the network's answers."""
    tensors = set(graph.output_names)
    for node in reversed(graph.nodes):
        if node.output[0] in tensors and node.op_type not in {"Conv", "Gemm"}:
            tensors.add(node.input[0])
    return tensors
