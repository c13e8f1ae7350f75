"""A few values of every activation, channel by channel: what the choice of equalization factors looks at."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from edgevision.errors import CalibrationError
from edgevision.graph import Graph
from edgevision_calibration.observe import observed_tensors, run_probe
from edgevision_calibration.probe import Probe, Reading
from edgevision_calibration.table import Digest, channel_sums

_SEED = 0
# pixels that are read of a large map for each that is drawn of them: the drawn ones must differ between pictures, or
# what happens beside the grid (and at the borders, behind padding) is never seen
_READ_PER_DRAWN = 16
# of tensors with few channels more pixels are drawn: a histogram of all their values is made of these too
_LEAST_VALUES = 1 << 11


@dataclass(frozen=True)
class ChannelSamples:
    """What a few pictures put into one tensor.

    Attributes:
        values: float32 ``[samples, C]``, from pixels drawn at random.
        lows: least value of every channel in every picture, float32 ``[pictures, C]``; 0 where a Relu, or a Clip at 0
            or above, lets no less through.
        highs: greatest one, float32 ``[pictures, C]``.
        sums: sum of every channel over the pixels of every picture that were read, float32 ``[pictures, C]``.
        pixels: how many pixels the tensor has.
        pixels_read: how many of them were read of every picture.
    """

    values: npt.NDArray[np.float32]
    lows: npt.NDArray[np.float32]
    highs: npt.NDArray[np.float32]
    sums: npt.NDArray[np.float32]
    pixels: int
    pixels_read: int

    @cached_property
    def low(self) -> npt.NDArray[np.float32]:
        """Least value of every channel over all pixels, float32 ``[C]``."""
        return np.asarray(self.lows.min(axis=0), np.float32)

    @cached_property
    def high(self) -> npt.NDArray[np.float32]:
        """Greatest value of every channel over all pixels, float32 ``[C]``."""
        return np.asarray(self.highs.max(axis=0), np.float32)

    @cached_property
    def power(self) -> npt.NDArray[np.float64]:
        """Mean square of every channel, float64 ``[C]``."""
        return np.asarray(np.square(self.values, dtype=np.float64).mean(axis=0), np.float64)

    @cached_property
    def variance(self) -> npt.NDArray[np.float64]:
        """Variance of every channel, float64 ``[C]``."""
        return np.asarray(self.values.var(axis=0, dtype=np.float64), np.float64)

    def moved(self, offsets: npt.NDArray[np.float64]) -> ChannelSamples:
        """The samples with ``offsets`` ``[C]`` added."""
        return self.rescaled(np.ones(len(offsets)), offsets)

    def rescaled(self, factors: npt.NDArray[np.floating], offsets: npt.NDArray[np.float64]) -> ChannelSamples:
        """The samples times ``factors`` ``[C]``, which may be negative, plus ``offsets`` ``[C]``."""
        scaled, added = factors.astype(np.float32), offsets.astype(np.float32)
        ends = (self.lows * scaled + added, self.highs * scaled + added)
        return replace(
            self,
            values=self.values * scaled + added,
            lows=np.where(scaled > 0, *ends),
            highs=np.where(scaled > 0, *reversed(ends)),
            sums=self.sums * scaled + added * np.float32(self.pixels_read),
        )

    def clipped(self, least: float, greatest: float) -> ChannelSamples:
        """The samples behind a Clip; their sums stay, as what it cuts off is little."""
        return replace(
            self,
            values=self.values.clip(least, greatest),
            lows=self.lows.clip(least, greatest),
            highs=self.highs.clip(least, greatest),
        )

    @property
    def digest(self) -> Digest:
        """What a calibration table takes in of them."""
        return Digest(self.values.reshape(len(self.lows), -1), self.lows, self.highs, self.sums, self.pixels_read)

    @cached_property
    def occupied(self) -> npt.NDArray[np.float64]:
        """Share of the values that are not zero, float64 ``[C]``: zeros are quantized without error."""
        return np.asarray((self.values != 0).mean(axis=0), np.float64)


def collect_samples(
    graph: Graph, batches: Iterable[npt.NDArray[np.float32]], *, pictures: int, pixels: int, threads: int = 0
) -> Mapping[str, ChannelSamples]:
    """Run at most ``pictures`` pictures and keep ``pixels`` pixels of each, the same ones in every run.

    Returns:
        Tensor name → samples, for every tensor of `observed_tensors`.

    Raises:
        CalibrationError: there are no pictures, or an activation is NaN or infinite.
    """
    names = observed_tensors(graph)
    probe = Probe(graph, names, pixels=_READ_PER_DRAWN * pixels)
    generator = np.random.default_rng(_SEED)
    kept = {name: _Kept(pictures) for name in names}
    seen = 0
    for batch, readings in run_probe(probe, graph.input_name, _first(batches, pictures), threads=threads):
        for reading in readings:
            kept[reading.name].take(reading, pixels, generator)
        seen += len(batch)
    if seen == 0:
        raise CalibrationError("there are no calibration images: give --data a folder or data set that holds some")
    return {name: own.samples(math.prod(side or 1 for side in graph.shapes[name][2:])) for name, own in kept.items()}


class _Kept:
    """What was kept of one tensor.

    Args:
        pictures: how many will probably come: the room for their values is taken at once.
    """

    def __init__(self, pictures: int) -> None:
        self._pictures = pictures
        self._values = np.empty((0, 0, 0), np.float32)
        self._seen = 0
        self._pixels_read = 0
        self._lows: list[npt.NDArray[np.float32]] = []
        self._highs: list[npt.NDArray[np.float32]] = []
        self._sums: list[npt.NDArray[np.float32]] = []

    def take(self, reading: Reading, pixels: int, generator: np.random.Generator) -> None:
        """Draw at least ``pixels`` pixels of each picture."""
        read = reading.values.reshape(*reading.lows.shape, -1)
        wanted = max(pixels, _LEAST_VALUES // read.shape[1])
        drawn = read[:, :, generator.integers(0, read.shape[2], wanted)] if read.shape[2] > wanted else read
        sums, pixels_read = channel_sums(read)
        # what is NaN or infinite shows in a sum
        if not math.isfinite(float(sums.sum() + reading.lows.sum() + reading.highs.sum())):
            raise CalibrationError(
                f"tensor {reading.name!r}: an activation is NaN or infinite: check the weights and the calibration "
                "images"
            )
        self._keep(drawn.swapaxes(1, 2))
        self._lows.append(reading.lows)
        self._highs.append(reading.highs)
        self._sums.append(sums)
        self._pixels_read = pixels_read

    def _keep(self, drawn: npt.NDArray[np.float32]) -> None:
        """Take in the pixels drawn of some pictures, ``[B, pixels, C]``."""
        missing = self._seen + len(drawn) - len(self._values)
        if missing > 0:
            room = np.empty((max(self._pictures, missing), *drawn.shape[1:]), np.float32)
            self._values = np.concatenate([self._values, room]) if self._seen else room
        self._values[self._seen : self._seen + len(drawn)] = drawn
        self._seen += len(drawn)

    def samples(self, pixels: int) -> ChannelSamples:
        """Those of a tensor of so many pixels."""
        return ChannelSamples(
            self._values[: self._seen].reshape(-1, self._values.shape[2]),
            np.concatenate(self._lows),
            np.concatenate(self._highs),
            np.concatenate(self._sums),
            pixels,
            self._pixels_read,
        )


def _first(batches: Iterable[npt.NDArray[np.float32]], pictures: int) -> Iterator[npt.NDArray[np.float32]]:
    """Batches until they hold so many pictures."""
    seen = 0
    for batch in batches:
        yield batch
        seen += len(batch)
        if seen >= pictures:
            return
