"""The factors that equalization multiplies channels with: those with the least rounding noise in the outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgevision.graph import Graph
from edgevision_calibration.channels import ChannelGroup
from edgevision_calibration.planning import clip_bounds
from edgevision_calibration.samples import ChannelSamples
from edgevision_calibration.weights import per_input

if TYPE_CHECKING:
    from onnx import NodeProto

Array = npt.NDArray[np.float64]

# beyond what was seen, values may go this much further before an unmet Clip would cut them
_HEADROOM = 1.2
_START_BELOW = 2.0
# a channel that is nearly dead counts as one of this share of the largest
_LEAST_PEAK = 0.02
_MARGIN = 1.05
# a channel is not blown up, or made small, beyond this against the middle one
_GREATEST_FACTOR = 1e4
# clipped values come in patches, so their error adds up where that of rounding averages out
_CLIP_WEIGHT = 6.0
_CLIPS = np.linspace(0.3, 1.0, 8)
_PEAK_PIXELS = 4.0
_LEVELS = 255.0
_STEPS = 60
# a maximum that can be differentiated: the norm of this order (a power of two is quick)
_ORDER = 16
# the error of a weight is the same at every pixel, so it averages out less than that of rounding
_ALIKE = 4.0
# output channels of a consumer that are looked at: their noise is much alike
_ROWS = 48
# behind these, what never was above zero may be so in another picture
_RECTIFIED = frozenset({"Relu", "Clip", "MaxPool", "Concat"})


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the group: index ``[C]``, kept extents on either side of zero ``[C]``, noise weight ``[C]``, upper
    bound of the Clip that makes it, greatest value and magnitude of the least one ``[C]``."""

    index: npt.NDArray[np.int64]
    above: Array
    below: Array
    weight: Array
    bound: float
    peak: Array
    trough: Array

    @cached_property
    def signed(self) -> bool:
        """Whether anything of it is below zero."""
        return bool(self.below.any())


@dataclass(frozen=True)
class _Reader:
    """Weights that read the group: index ``[I]``, magnitudes ``[O, I]``, noise weight ``[O]``, power ``[I]``."""

    index: npt.NDArray[np.int64]
    magnitudes: Array
    weight: Array
    power: Array


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
    logs = _minimised(_start(tensors, readers, group.size), tensors, readers, np.log(least), np.log(greatest))
    return np.asarray(np.exp(logs) * signs, np.float64)


def _tensors(
    graph: Graph, group: ChannelGroup, samples: Mapping[str, ChannelSamples], gains: Mapping[str, Array]
) -> tuple[list[_Tensor], Array, Array]:
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
        tensors.append(_Tensor(index, above, below, seen.occupied * gains[name], bound, peak, trough))
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
    best, least = high.copy(), np.full(len(high), np.inf)
    room, peak_room = np.empty_like(values), np.empty_like(peaks)
    for share in _CLIPS:
        end = low + (high - low) * share
        limit = end.astype(np.float32)
        drawn = _mean_square_beyond(values, limit, room)
        # the few pixels drawn of a large picture miss its peaks, each of which covers a few pixels
        known = _mean_square_beyond(peaks, limit, peak_room) * min(_PEAK_PIXELS / pixels, 1.0)
        error = _CLIP_WEIGHT * np.maximum(drawn, known) + np.square((end - low) / _LEVELS) / 12 * occupied
        better = error <= least
        best[better], least[better] = end[better], error[better]
    return best


def _mean_square_beyond(
    values: npt.NDArray[np.float32], limit: npt.NDArray[np.float32], room: npt.NDArray[np.float32]
) -> Array:
    """Mean of the squares of what lies above ``limit [C]``, ``[C]``; ``room``, of the values' shape, is overwritten."""
    np.subtract(values, limit, out=room)
    np.maximum(room, 0, out=room)
    return np.asarray(np.einsum("sc,sc->c", room, room), np.float64) / len(values)


def _balance(tensors: list[_Tensor], size: int) -> Array:
    """Positive where a channel's longer tail is above zero, ``[size]``."""
    balance = np.zeros(size)
    for tensor in tensors:
        free = tensor.index >= 0
        weight = tensor.weight * (tensor.peak - tensor.trough) * (tensor.above + tensor.below)
        np.add.at(balance, tensor.index[free], weight[free])
    return balance


def _turned(tensor: _Tensor, signs: Array) -> _Tensor:
    turned = np.where(tensor.index >= 0, signs[tensor.index], 1.0) < 0
    above, below = np.where(turned, tensor.below, tensor.above), np.where(turned, tensor.above, tensor.below)
    return _Tensor(tensor.index, above, below, tensor.weight, tensor.bound, tensor.peak, tensor.trough)


def _readers(
    graph: Graph,
    group: ChannelGroup,
    node: NodeProto,
    samples: Mapping[str, ChannelSamples],
    gains: Mapping[str, Array],
) -> list[_Reader]:
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
    return [_Reader(index[at], magnitudes[at], gain[at][rows], power[at]) for at in range(groups)]


def _start(tensors: list[_Tensor], readers: list[_Reader], size: int) -> Array:
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


def _minimised(start: Array, tensors: list[_Tensor], readers: list[_Reader], least: Array, greatest: Array) -> Array:
    """Adam (Kingma and Ba, arXiv 1412.6980, algorithm 1) on the logarithms of the factors, ``[size]``."""
    limit = np.log(_GREATEST_FACTOR)
    least, greatest = np.maximum(least, -limit), np.minimum(greatest, limit)
    logs = np.clip(start, least, greatest)
    best, least_noise = logs, np.inf
    first, second = np.zeros(len(logs)), np.zeros(len(logs))
    for step in range(1, _STEPS + 1):
        noise, slope = _noise(logs, tensors, readers)
        if noise < least_noise:
            best, least_noise = logs, noise
        if noise <= 0:
            break
        slope = slope / noise
        first = 0.8 * first + 0.2 * slope
        second = 0.95 * second + 0.05 * np.square(slope)
        mean, scale = first / (1 - 0.8**step), np.sqrt(second / (1 - 0.95**step))
        rate = 0.15 * (1 - step / _STEPS) + 0.005
        # channels that hardly matter are moved gently: their slope is noise
        logs = np.clip(logs - rate * mean / (scale + 1e-4 / len(logs)), least, greatest)
    return best


def _noise(logs: Array, tensors: list[_Tensor], readers: list[_Reader]) -> tuple[float, Array]:
    """The sum that `choose_factors` states, and its gradient by the logarithms of the factors ``[size]``."""
    total = 0.0
    slope = np.zeros(len(logs) + 1)
    # one more entry, so that index −1 (a channel that is not free) finds the factor 1
    factors = np.append(np.exp(logs), 1.0)
    for tensor in tensors:
        own = factors[tensor.index]
        above, above_share = _maximum(own * tensor.above)
        below, below_share = _maximum(own * tensor.below) if tensor.signed else (0.0, np.zeros_like(own))
        if above >= tensor.bound:
            above, above_share = tensor.bound, np.zeros_like(above_share)
        extent = max(above + below, 1e-30)
        noise = tensor.weight / np.square(own) * (np.square(extent / _LEVELS) / 12)
        total += float(noise.sum())
        moved = 2 * noise.sum() / extent * (above * above_share + below * below_share)
        slope += _summed(tensor.index, moved - 2 * noise, len(slope))
    for reader in readers:
        own = factors[reader.index]
        peak, share = _maximum(reader.magnitudes / own)
        power = reader.power * np.square(own)
        noise = reader.weight * np.square(peak / 127) / 12
        total += noise.sum() * power.sum()
        slope += _summed(reader.index, 2 * noise.sum() * power - 2 * power.sum() * (noise @ share), len(slope))
    return float(total), slope[:-1]


def _summed(index: npt.NDArray[np.int64], values: Array, size: int) -> Array:
    """``values`` added up by ``index``, ``[size]``; index −1 is the last entry."""
    return np.asarray(np.bincount(np.where(index < 0, size - 1, index), weights=values, minlength=size), np.float64)


def _maximum(values: Array) -> tuple[Any, Array]:
    """Soft maximum along the last axis and, per value, the derivative of its logarithm by the value's logarithm."""
    peak = np.maximum(values.max(axis=-1, keepdims=True), 1e-30)
    powers = values / peak
    for _ in range(_ORDER.bit_length() - 1):
        np.square(powers, out=powers)
    total = np.maximum(powers.sum(axis=-1, keepdims=True), 1e-30)
    return (peak * total ** (1 / _ORDER))[..., 0], powers / total
