"""The rounding noise that factors of channels lead to, and the factors with the least of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# a channel is not blown up, or made small, beyond this against the middle one
_GREATEST_FACTOR = 1e4
# steps of a range of 8-bit integers
LEVELS = 255.0
_STEPS = 60
# a maximum that can be differentiated: the norm of this order
_ORDER = 16
_LEAST_EXTENT, _LEAST_TOTAL = 1e-30, 1e-300


@dataclass(frozen=True)
class TensorExtents:
    """A tensor of a group of channels.

    Attributes:
        index: the group's channel at each of the tensor's, −1 where it is not free, ``[C]``.
        above: kept extent above zero ``[C]``.
        below: kept extent below zero ``[C]``.
        weight: of a channel's noise ``[C]``.
        bound: upper bound of the Clip that makes the tensor.
        peak: greatest value ``[C]``.
        trough: magnitude of the least value ``[C]``, 0 where nothing is below zero.
    """

    index: npt.NDArray[np.int64]
    above: Array
    below: Array
    weight: Array
    bound: float
    peak: Array
    trough: Array


@dataclass(frozen=True)
class WeightMagnitudes:
    """Weights that read a group of channels.

    Attributes:
        index: the group's channel at each input, −1 where it is not free, ``[I]``.
        magnitudes: greatest one of a kernel's taps, ``[O, I]``.
        weight: of an output's noise ``[O]``.
        power: of what arrives at an input, ``[I]``.
    """

    index: npt.NDArray[np.int64]
    magnitudes: Array
    weight: Array
    power: Array


def least_noise(
    start: Array, tensors: Sequence[TensorExtents], readers: Sequence[WeightMagnitudes], least: Array, greatest: Array
) -> Array:
    """Logarithms of the factors with the least noise, ``[size]``, from ``start`` on and between the two bounds.

    By Adam (Kingma and Ba, arXiv 1412.6980, algorithm 1); what is minimised is
    `edgevision_calibration.factors.choose_factors`'s sum.
    """
    limit = np.log(_GREATEST_FACTOR)
    least, greatest = np.maximum(least, -limit), np.minimum(greatest, limit)
    logs = np.clip(start, least, greatest)
    noises = _Noises(logs, tensors, readers)
    best, least_seen = logs, np.inf
    first, second = np.zeros(len(logs)), np.zeros(len(logs))
    for step in range(1, _STEPS + 1):
        noise, slope = noises.at(logs)
        if noise < least_seen:
            best, least_seen = logs, noise
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


class _Part(Protocol):
    """Something whose rounding the factors change."""

    index: npt.NDArray[np.int64]

    def at(self, factors: Array, powers: Array) -> tuple[float, Array]:
        """Noise, and its gradient by the logarithms of the factors at `index`.

        Args:
            factors: of the group's channels, and 1 for what is not free, ``[size + 1]``.
            powers: their change since the start, to the power of `_ORDER`.
        """


class _Noises:
    """All noise of a group of channels, as its factors move from where they start."""

    def __init__(self, start: Array, tensors: Sequence[TensorExtents], readers: Sequence[WeightMagnitudes]) -> None:
        factors = np.append(np.exp(start), 1.0)
        self._start = start
        self._parts: list[_Part] = [
            *(_TensorNoise(tensor, factors) for tensor in tensors),
            *(_WeightNoise(reader, factors) for reader in readers),
        ]

    def at(self, logs: Array) -> tuple[float, Array]:
        """The sum, and its gradient by the logarithms of the factors ``[size]``."""
        factors, powers = np.append(np.exp(logs), 1.0), np.append(np.exp(_ORDER * (logs - self._start)), 1.0)
        total, slope = 0.0, np.zeros(len(factors))
        for part in self._parts:
            noise, own = part.at(factors, powers)
            total += noise
            slope += np.bincount(part.index, weights=own, minlength=len(factors))
        return total, slope[:-1]


class _TensorNoise:
    """Rounding of a tensor: the squared step of the range that holds all channels, back in each channel's own size."""

    def __init__(self, tensor: TensorExtents, factors: Array) -> None:
        self.index = _places(tensor.index, factors)
        self._weight = tensor.weight / (12 * LEVELS**2)
        self._bound = tensor.bound
        near = factors[self.index]
        self._above = _SoftMaximum(tensor.above[None] * near)
        self._below = _SoftMaximum(tensor.below[None] * near) if tensor.below.any() else None

    def at(self, factors: Array, powers: Array) -> tuple[float, Array]:
        grown = powers[self.index]
        above, totals = self._above.at(grown)
        extent = min(float(above[0]), self._bound)
        # an end that lies at the bound does not move
        moved = self._above.slope(above, totals, grown) if above[0] < self._bound else np.zeros(len(grown))
        if self._below is not None:
            below, totals = self._below.at(grown)
            extent += float(below[0])
            moved += self._below.slope(below, totals, grown)
        extent = max(extent, _LEAST_EXTENT)
        noise = self._weight * np.square(extent / factors[self.index])
        total = float(noise.sum())
        return total, 2 * total / extent * moved - 2 * noise


class _WeightNoise:
    """Rounding of weights: the squared step of each output's greatest weight, times the power that arrives."""

    def __init__(self, reader: WeightMagnitudes, factors: Array) -> None:
        self.index = _places(reader.index, factors)
        self._weight = reader.weight / (12 * 127.0**2)
        self._power = reader.power
        self._peaks = _SoftMaximum(reader.magnitudes / factors[self.index])

    def at(self, factors: Array, powers: Array) -> tuple[float, Array]:
        shrunk = 1.0 / powers[self.index]
        peaks, totals = self._peaks.at(shrunk)
        power = self._power * np.square(factors[self.index])
        arriving = float(power.sum())
        noise = self._weight * np.square(peaks)
        total = float(noise.sum())
        return total * arriving, 2 * total * power - 2 * arriving * self._peaks.slope(noise, totals, shrunk)


def _places(index: npt.NDArray[np.int64], factors: Array) -> npt.NDArray[np.int64]:
    """Where each channel finds its factor: the last entry is the 1 of those that are not free."""
    return np.where(index < 0, len(factors) - 1, index)


class _SoftMaximum:
    """The norm of order `_ORDER` along the last axis of values ``[O, I]`` that are multiplied by factors ``[I]``.

    A power of a product is the product of the powers: those of the values are taken once, and what each set of factors
    then asks for are products of a matrix and a vector. The values come as they are at the start, from which the
    factors do not move so far that their powers leave what a float64 holds.
    """

    def __init__(self, values: Array) -> None:
        self._peak = np.maximum(values.max(axis=1), _LEAST_EXTENT)
        self._powers = (values / self._peak[:, None]) ** _ORDER

    def at(self, powers: Array) -> tuple[Array, Array]:
        """The norms ``[O]``, and their powers as `slope` wants them, for factors of which ``[I]`` are the powers."""
        totals = np.maximum(self._powers @ powers, _LEAST_TOTAL)
        return np.asarray(self._peak * totals ** (1 / _ORDER), np.float64), totals

    def slope(self, weights: Array, totals: Array, powers: Array) -> Array:
        """Gradient ``[I]`` of ``weights [O]`` times the logarithms of the norms, by the logarithms of the factors."""
        return np.asarray(((weights / totals) @ self._powers) * powers, np.float64)
