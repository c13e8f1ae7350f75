"""Cross-layer equalization: channels of one tensor brought to one range without changing the network's function."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgevision.graph import Graph
from edgevision_calibration.centering import choose_offsets, movable_tensors, move
from edgevision_calibration.channels import ChannelGroup, channel_groups
from edgevision_calibration.factors import choose_factors, kept_interval
from edgevision_calibration.noise import noise_gains
from edgevision_calibration.planning import clip_bounds
from edgevision_calibration.samples import ChannelSamples, collect_samples
from edgevision_calibration.table import CalibrationTable
from edgevision_calibration.weights import along, per_input, weight_axis

if TYPE_CHECKING:
    from onnx import NodeProto

# pictures the factors are chosen from, and pixels of each: fewer pictures miss the peaks of rare channels (1 dB of
# MobileNetV2's logits with a half or a quarter of them), more pixels change nothing
PICTURES = 64
_PIXELS = 8


@dataclass(frozen=True)
class Equalized:
    """A graph whose channels were rescaled.

    Attributes:
        graph: computes what the graph did, up to float rounding (and up to clips, see `equalize`).
        factors: tensor name → what each of its channels was multiplied with, float32 ``[C]``; tensors of which
            no channel changed are left out.
        offsets: tensor name → what was added to each of its channels after that, float64 ``[C]``.
        noise_gains: tensor name → power of the outputs' disturbance per power of rounding noise in all of the
            rescaled tensor, as far as the model of `edgevision_calibration.noise` tells it.
        samples: what the pictures put into the tensors of ``graph``; none where there was nothing to look at them for.
    """

    graph: Graph
    factors: Mapping[str, npt.NDArray[np.float32]]
    offsets: Mapping[str, npt.NDArray[np.float64]]
    noise_gains: Mapping[str, float] = field(default_factory=dict)
    samples: Mapping[str, ChannelSamples] = field(default_factory=dict)

    def table(self) -> CalibrationTable:
        """What the pictures put into the tensors of ``graph``: where calibration with other pictures goes on."""
        table = CalibrationTable(self.graph.sha256, noise_gains=dict(self.noise_gains))
        for name, seen in self.samples.items():
            table.update(name, seen.digest)
            table.images = len(seen.lows)
        return table

    @property
    def report(self) -> str:
        """One line for people."""
        if not self.factors:
            return f"equalization: no channels to rescale, those of {len(self.offsets)} tensors centred"
        least = min(float(np.abs(factor).min()) for factor in self.factors.values())
        greatest = max(float(np.abs(factor).max()) for factor in self.factors.values())
        return (
            f"equalization: channels of {len(self.factors)} tensors rescaled by {least:.3g} to {greatest:.3g}, "
            f"those of {len(self.offsets)} centred"
        )


def equalize(graph: Graph, batches: Iterable[npt.NDArray[np.float32]], *, threads: int = 0) -> Equalized:
    """Rescale channels so that those of one tensor use its integers alike.

    Each channel is multiplied by ``s`` where it is made and divided by ``s`` in the weights that read it, which
    leaves the function alone wherever only ReLU, pooling, addition, concatenation or flattening lie between
    (`channel_groups`). Linear tensors are centred as well, by their biases (`movable_tensors`). A Clip at 6 is
    followed as long as the channel stays under it, before and after, with a fifth to spare. A channel whose few
    greatest values meet the Clip is treated as if it ended before them, as its quantized range does: these
    values are the one thing that changes in float.

    Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, arXiv
    1906.04721, section 4.1, with measured activations; the factors divide the burden between activations and
    weights as in Xiao et al., SmoothQuant, arXiv 2211.10438, section 4, but by least noise (`choose_factors`)
    instead of a fixed exponent.

    Args:
        graph: a canonical graph.
        batches: preprocessed pictures, float32 ``[B, C, H, W]`` each; the first 64 are used.
        threads: pictures that run at once, a thread each; 0 for all cores, up to 4.

    Raises:
        CalibrationError: there are no pictures, or an activation is NaN or infinite.
    """
    groups = [group for group in channel_groups(graph) if group.producers and group.consumers]
    movable = movable_tensors(graph)
    if not groups and not movable:
        return Equalized(graph, {}, {})
    samples = dict(collect_samples(graph, batches, pictures=PICTURES, pixels=_PIXELS, threads=threads))
    gains = noise_gains(graph, samples)
    middles = {name: _middle(samples[name]) for name in movable if name in samples}
    # the factors are chosen for the tensors as they will lie
    for name, middle in middles.items():
        samples[name] = samples[name].moved(-middle)
    chosen = [(group, choose_factors(graph, group, samples, gains)) for group in groups]
    rescaled = rescale(graph, chosen)
    for name in middles:
        middles[name] = middles[name] * rescaled.factors.get(name, 1.0)
    offsets = choose_offsets(rescaled.graph, middles)
    totals = _totals(gains, samples, rescaled.factors)
    for name, seen in samples.items():
        # they were moved to their middles above
        offset = middles.get(name, 0.0) + offsets.get(name, 0.0)
        samples[name] = _as_rescaled(graph, name, seen, rescaled.factors.get(name), offset)
    return Equalized(move(rescaled.graph, offsets), rescaled.factors, offsets, totals, samples)


def _as_rescaled(
    graph: Graph,
    name: str,
    seen: ChannelSamples,
    factors: npt.NDArray[np.float32] | None,
    offset: npt.NDArray[np.float64] | float,
) -> ChannelSamples:
    """What the pictures put into a tensor of the rescaled graph, without running it."""
    if factors is None and np.ndim(offset) == 0:
        return seen
    channels = seen.values.shape[1]
    found = seen.rescaled(np.ones(channels) if factors is None else factors, np.broadcast_to(offset, channels))
    producer = graph.producer.get(name)
    if producer is None or producer.op_type != "Clip":
        return found
    return found.clipped(*clip_bounds(graph, producer))


def _totals(
    gains: Mapping[str, npt.NDArray[np.float64]],
    samples: Mapping[str, ChannelSamples],
    factors: Mapping[str, npt.NDArray[np.float32]],
) -> dict[str, float]:
    """Noise gains of whole tensors: those of the channels as they are now, zeros making no noise."""
    return {
        name: float((gain * samples[name].occupied / np.square(factors.get(name, 1.0), dtype=np.float64)).sum())
        for name, gain in gains.items()
        if name in samples
    }


def _middle(seen: ChannelSamples) -> npt.NDArray[np.float64]:
    low, high = kept_interval(seen)
    return np.asarray((low + high) / 2, np.float64)


def rescale(graph: Graph, chosen: Sequence[tuple[ChannelGroup, npt.NDArray[np.float64]]]) -> Equalized:
    """The graph with every group's channels multiplied by its factors ``[group.size]``."""
    weights: dict[str, npt.NDArray[np.float64]] = {}
    factors: dict[str, npt.NDArray[np.float32]] = {}
    for group, values in chosen:
        for name in group.tensors:
            own = _of_channels(group, name, values)
            if np.any(own != 1.0):
                factors[name] = own.astype(np.float32)
        for node in group.producers:
            _scale_outputs(graph, node, weights, _of_channels(group, node.output[0], values))
        for node in group.consumers:
            _scale_inputs(graph, node, weights, 1.0 / _of_channels(group, node.input[0], values))
    rescaled = graph.with_initializers({name: weight.astype(np.float32) for name, weight in weights.items()})
    return Equalized(rescaled, factors, {})


def _of_channels(group: ChannelGroup, name: str, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The factor of each channel of a tensor, ``[C]``; 1 where a channel is not free."""
    index = group.tensors[name]
    return np.where(index >= 0, values[index], 1.0)


def _scale_outputs(
    graph: Graph, node: NodeProto, weights: dict[str, npt.NDArray[np.float64]], factors: npt.NDArray[np.float64]
) -> None:
    weight = weights.get(node.input[1], graph.initializers[node.input[1]].astype(np.float64))
    weights[node.input[1]] = weight * along(factors, weight_axis(node), weight.ndim)
    if len(node.input) > 2 and node.input[2]:
        bias = weights.get(node.input[2], graph.initializers[node.input[2]].astype(np.float64))
        weights[node.input[2]] = bias * along(factors, bias.ndim - 1, bias.ndim)


def _scale_inputs(
    graph: Graph, node: NodeProto, weights: dict[str, npt.NDArray[np.float64]], factors: npt.NDArray[np.float64]
) -> None:
    weight = weights.get(node.input[1], graph.initializers[node.input[1]].astype(np.float64)).copy()
    view = per_input(weight, node)
    view *= factors.reshape(view.shape[0], 1, view.shape[2], 1)
    weights[node.input[1]] = weight
