"""The factors that equalization multiplies channels with: those with the least rounding noise in the outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgevision.graph import Graph
from edgevision_calibration.channels import ChannelGroup
from edgevision_calibration.factor_noise import LEVELS, Array, TensorExtents, WeightMagnitudes, least_noise
from edgevision_calibration.planning import clip_bounds
from edgevision_calibration.samples import ChannelSamples
from edgevision_calibration.weights import per_input

if TYPE_CHECKING:
    from onnx import NodeProto

# beyond what was seen, values may go this much further before an unmet Clip would cut them
_HEADROOM = 1.2
_START_BELOW = 2.0
# a channel that is nearly dead counts as one of this share of the largest
_LEAST_PEAK = 0.02
_MARGIN = 1.05
# clipped values come in patches, so their error adds up where that of rounding averages out
_CLIP_WEIGHT = 6.0
_CLIPS = np.linspace(0.3, 1.0, 8)
_PEAK_PIXELS = 4.0
# the error of a weight is the same at every pixel, so it averages out less than that of rounding
_ALIKE = 4.0
# output channels of a consumer that are looked at: their noise is much alike
_ROWS = 48
# behind these, what never was above zero may be so in another picture
_RECTIFIED = frozenset({"Relu", "Clip", "MaxPool", "Concat"})


def choose_factors(
    graph: Graph, group: ChannelGroup, samples: Mapping[str, ChannelSamples], gains: Mapping[str, Array]
) -> Array:
    """One factor per channel of the group, float64 ``[group.size]``; negative where a sign is turned.

    Minimised over the factors s, with 8-bit steps Δ = range / 255 and Δ_o = max_c |w_oc / s_c| / 127::

        Σ_tensors Δ² / 12 · Σ_c g_c / s_c²   +   Σ_readers Σ_o g_o Δ_o² / 12 · Σ_c s_c² Var[x_c]

    where g are `noise_gains`: rounding of the activations against rounding of the weights (what the mean of a
    channel adds to the latter, bias correction takes off again). Signs are turned where the group lets them
    through, so that the long tails of all channels lie on one side of zero, and an affine range spends its
    integers there. Channels scaled otherwise before get factors that end in the same place.

    A channel that a Relu kept at or near zero in these pictures counts as if it reached one deviation of the sums
    behind it (`_deviations`): blown up to the range of the others, it would fill the whole range with nothing but
    itself in the first picture in which it fires.
    """
    tensors, least, greatest = _tensors(graph, group, samples, gains)
    if not tensors:
        return np.ones(group.size)
    signs = np.ones(group.size)
    if group.signed.any():
        signs = np.where(group.signed & (_balance(tensors, group.size) < 0), -1.0, 1.0)
        tensors = [_turned(tensor, signs) for tensor in tensors]
    readers = [reader for node in group.consumers for reader in _readers(graph, group, node, samples, gains)]
    logs = least_noise(_start(tensors, readers, group.size), tensors, readers, np.log(least), np.log(greatest))
    return np.asarray(np.exp(logs) * signs, np.float64)


def _tensors(
    graph: Graph, group: ChannelGroup, samples: Mapping[str, ChannelSamples], gains: Mapping[str, Array]
) -> tuple[list[TensorExtents], Array, Array]:
    """Tensors of the group that may carry integers, and the least and greatest factor that their clips allow."""
    tensors = []
    deviations = _deviations(graph, group, samples)
    least, greatest = np.zeros(group.size) + 1e-30, np.full(group.size, np.inf)
    for name, index in group.tensors.items():
        if name not in samples or name not in gains:
            continue
        seen, (kept_low, kept_high) = samples[name], kept_interval(samples[name])
        free = index >= 0
        producer = graph.producer.get(name)
        low, bound = (0.0, np.inf) if producer is None or producer.op_type != "Clip" else clip_bounds(graph, producer)
        if low not in {0.0, -np.inf}:
            bound, room, met = np.inf, np.ones(len(index)), np.ones(len(index), bool)
        else:
            # a channel whose values the Clip cuts cannot shrink, and grow only as far as cutting more does no harm
            met = kept_high >= 0.999 * bound
            peaks = np.where(seen.high >= 0.999 * bound, kept_high, _HEADROOM * seen.high)
            room = np.maximum(bound / np.maximum(peaks, _LEAST_PEAK * max(float(peaks.max()), 1e-30)), 1.0)
        np.minimum.at(greatest, index[free], room[free])
        np.maximum.at(least, index[free], np.where(met, 1.0, 1e-30)[free])
        above, below = np.maximum(kept_high, 0.0), np.maximum(-kept_low, 0.0)
        if producer is not None and producer.op_type in _RECTIFIED:
            above = np.maximum(above, np.where(free & (below == 0), np.minimum(deviations[index], bound), 0.0))
        peak, trough = np.maximum(seen.high, 1e-30).astype(np.float64), np.maximum(-seen.low, 0).astype(np.float64)
        tensors.append(TensorExtents(index, above, below, seen.occupied * gains[name], bound, peak, trough))
    return tensors, least, np.maximum(greatest, least)


def _deviations(graph: Graph, group: ChannelGroup, samples: Mapping[str, ChannelSamples]) -> Array:
    """Deviation of the sums that make each channel, were its inputs independent, ``[group.size]``; 0 where unknown.

    It is known for a channel that an activation hides, and scales as the channel does.
    """
    variances = np.zeros(group.size)
    for node in group.producers:
        if node.input[0] not in samples:
            continue
        weight = per_input(graph.initializers[node.input[1]], node)
        power = np.square(weight, dtype=np.float64).sum(axis=3)
        arriving = samples[node.input[0]].variance.reshape(weight.shape[0], -1)
        made = np.einsum("goi,gi->go", power, arriving).reshape(-1)
        index = group.tensors[node.output[0]]
        np.maximum.at(variances, index[index >= 0], made[index >= 0])
    return np.sqrt(variances)


def kept_interval(seen: ChannelSamples) -> tuple[Array, Array]:
    """Least and greatest value of each channel that are worth keeping, float64 ``[C]`` each.

    Either end in turn is cut where clipping more would cost more than the finer steps of a range that belongs to
    the channel alone would save.
    """
    low, high = seen.low.astype(np.float64), seen.high.astype(np.float64)
    slack = (_MARGIN - 1) * (high - low)
    # what never was below zero (behind a Relu) never will be
    low, high = np.where(low < 0, low - slack, low), np.where(high > 0, high + slack, high)
    high = _cut(seen.values, seen.highs, seen.pixels, low, high, seen.occupied)
    if (low < 0).any():
        low = -_cut(-seen.values, -seen.lows, seen.pixels, -high, -low, seen.occupied)
    return low, high


def _cut(
    values: npt.NDArray[np.float32],
    peaks: npt.NDArray[np.float32],
    pixels: int,
    low: Array,
    high: Array,
    occupied: Array,
) -> Array:
    """Where to cut the upper end of each channel, ``[C]``."""
    # at the whole range nothing is clipped
    end = low + (high - low)
    best, least = end, _step_noise(end - low, occupied)
    room, peak_room = np.empty_like(values), np.empty_like(peaks)
    for share in _CLIPS[-2::-1]:
        end = low + (high - low) * share
        limit = end.astype(np.float32)
        drawn = _mean_square_beyond(values, limit, room)
        # the few pixels drawn of a large picture miss its peaks, each of which covers a few pixels
        known = _mean_square_beyond(peaks, limit, peak_room) * min(_PEAK_PIXELS / pixels, 1.0)
        error = _CLIP_WEIGHT * np.maximum(drawn, known) + _step_noise(end - low, occupied)
        better = error < least
        if not better.any():
            # both parts of the error are convex in the end: further in there is no less
            break
        best[better], least[better] = end[better], error[better]
    return best


def _step_noise(extent: Array, occupied: Array) -> Array:
    """Noise of each channel, ``[C]``, were the integers spread over its own ``extent [C]``; zeros make none."""
    return np.asarray(np.square(extent / LEVELS) / 12 * occupied, np.float64)


def _mean_square_beyond(
    values: npt.NDArray[np.float32], limit: npt.NDArray[np.float32], room: npt.NDArray[np.float32]
) -> Array:
    """Mean of the squares of what lies above ``limit [C]``, ``[C]``; ``room``, of the values' shape, is overwritten."""
    np.subtract(values, limit, out=room)
    np.maximum(room, 0, out=room)
    return np.asarray(np.einsum("sc,sc->c", room, room), np.float64) / len(values)


def _balance(tensors: list[TensorExtents], size: int) -> Array:
    """Positive where a channel's longer tail is above zero, ``[size]``."""
    balance = np.zeros(size)
    for tensor in tensors:
        free = tensor.index >= 0
        weight = tensor.weight * (tensor.peak - tensor.trough) * (tensor.above + tensor.below)
        np.add.at(balance, tensor.index[free], weight[free])
    return balance


def _turned(tensor: TensorExtents, signs: Array) -> TensorExtents:
    turned = np.where(tensor.index >= 0, signs[tensor.index], 1.0) < 0
    above, below = np.where(turned, tensor.below, tensor.above), np.where(turned, tensor.above, tensor.below)
    return TensorExtents(tensor.index, above, below, tensor.weight, tensor.bound, tensor.peak, tensor.trough)


def _readers(
    graph: Graph,
    group: ChannelGroup,
    node: NodeProto,
    samples: Mapping[str, ChannelSamples],
    gains: Mapping[str, Array],
) -> list[WeightMagnitudes]:
    """What rounding a consumer's weights costs, one entry per group of a grouped convolution; none if depthwise."""
    weight = per_input(graph.initializers[node.input[1]], node)
    name = node.input[0]
    if weight.shape[2] == 1 or name not in samples or node.output[0] not in gains:
        # each weight step follows the one channel it belongs to, whatever the factor
        return []
    groups, outputs, inputs, taps = weight.shape
    rows = np.unique(np.linspace(0, outputs - 1, min(outputs, _ROWS)).astype(int))
    index = group.tensors[name].reshape(groups, inputs)
    # what the mean does is made good by bias correction
    power = samples[name].variance.reshape(groups, inputs) * taps
    gain = gains[node.output[0]].reshape(groups, outputs) * (_ALIKE * outputs / len(rows))
    magnitudes = np.abs(weight[:, rows]).max(axis=3).astype(np.float64)
    return [WeightMagnitudes(index[at], magnitudes[at], gain[at][rows], power[at]) for at in range(groups)]


def _start(tensors: list[TensorExtents], readers: list[WeightMagnitudes], size: int) -> Array:
    """Logarithms to begin with: the geometric middle between activations alone and weights alone, ``[size]``.

    It does not depend on how the channels are scaled as the graph comes, so neither does what is found from it.
    """
    extent, count = np.zeros(size), np.zeros(size)
    for tensor in tensors:
        own = np.maximum(tensor.above, tensor.below)
        # the mean of a channel that never fired says nothing; the tensor that the mean is of does
        alive = (tensor.index >= 0) & (own > 1e-6 * float(own.max()))
        np.add.at(extent, tensor.index[alive], np.log(own[alive]))
        np.add.at(count, tensor.index[alive], 1.0)
    logs = -extent / np.maximum(count, 1)
    # nothing is known of these: they may be scaled as the middle one is
    logs[count == 0] = np.median(logs[count > 0]) if (count > 0).any() else 0.0
    column, read = np.full(size, -np.inf), np.zeros(size, bool)
    for reader in readers:
        free = reader.index >= 0
        np.maximum.at(column, reader.index[free], np.log(np.maximum(reader.magnitudes.max(axis=0), 1e-30))[free])
        read[reader.index[free]] = True
    logs[read] = (0.5 * (logs + column))[read]
    logs = logs - np.median(logs)
    factors = np.append(np.exp(logs), 1.0)
    for tensor in tensors:
        if 0 < tensor.bound < np.inf:
            # a Clip that is never met is kept from being met; the quantized range ends before it
            room = tensor.bound / _START_BELOW / float((factors[tensor.index] * tensor.peak).max())
            logs, factors = logs + np.log(room), factors * room
    return np.asarray(logs, np.float64)
