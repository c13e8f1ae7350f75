"""A few values of every activation, channel by channel: what the choice of equalization factors looks at."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgevision.errors import CalibrationError
from edgevision.graph import Graph
from edgevision_calibration.observe import observed_tensors, run_probe
from edgevision_calibration.probe import Probe

_SEED = 0
# pixels that are read of a large map for each that is drawn of them: the drawn ones must differ between pictures, or
# what happens beside the grid (and at the borders, behind padding) is never seen
_READ_PER_DRAWN = 16


@dataclass(frozen=True)
class ChannelSamples:
    """What a few pictures put into one tensor.

    Attributes:
        values: float32 ``[samples, C]``, from pixels drawn at random.
        lows: least value of every channel in every picture, float32 ``[pictures, C]``; 0 where a Relu, or a Clip at 0
            or above, lets no less through.
        highs: greatest one, float32 ``[pictures, C]``.
        pixels: how many pixels the tensor has.
    """

    values: npt.NDArray[np.float32]
    lows: npt.NDArray[np.float32]
    highs: npt.NDArray[np.float32]
    pixels: int

    @property
    def low(self) -> npt.NDArray[np.float32]:
        """Least value of every channel over all pixels, float32 ``[C]``."""
        return np.asarray(self.lows.min(axis=0), np.float32)

    @property
    def high(self) -> npt.NDArray[np.float32]:
        """Greatest value of every channel over all pixels, float32 ``[C]``."""
        return np.asarray(self.highs.max(axis=0), np.float32)

    @property
    def power(self) -> npt.NDArray[np.float64]:
        """Mean square of every channel, float64 ``[C]``."""
        return np.asarray(np.square(self.values, dtype=np.float64).mean(axis=0), np.float64)

    @property
    def variance(self) -> npt.NDArray[np.float64]:
        """Variance of every channel, float64 ``[C]``."""
        return np.asarray(self.values.var(axis=0, dtype=np.float64), np.float64)

    def moved(self, offsets: npt.NDArray[np.float64]) -> ChannelSamples:
        """The samples with ``offsets`` ``[C]`` added."""
        added = offsets.astype(np.float32)
        return ChannelSamples(self.values + added, self.lows + added, self.highs + added, self.pixels)

    @property
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
    values: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in names}
    lows: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in names}
    highs: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in names}
    seen = 0
    for batch, readings in run_probe(probe, graph.input_name, _first(batches, pictures), threads=threads):
        for reading in readings:
            name, read = reading.name, reading.values.reshape(*reading.lows.shape, -1)
            if read.shape[2] > pixels:
                read = read[:, :, generator.integers(0, read.shape[2], pixels)]
            drawn = np.moveaxis(read, 1, 2).reshape(-1, read.shape[1])
            # what is NaN or infinite shows in a sum
            if not math.isfinite(float(drawn.sum() + reading.lows.sum() + reading.highs.sum())):
                raise CalibrationError(
                    f"tensor {name!r}: an activation is NaN or infinite: check the weights and the calibration images"
                )
            values[name].append(drawn)
            lows[name].append(reading.lows)
            highs[name].append(reading.highs)
        seen += len(batch)
    if seen == 0:
        raise CalibrationError("there are no calibration images: give --data a folder or data set that holds some")
    return {
        name: ChannelSamples(
            np.concatenate(values[name]),
            np.concatenate(lows[name]),
            np.concatenate(highs[name]),
            math.prod(side or 1 for side in graph.shapes[name][2:]),
        )
        for name in names
    }


def _first(batches: Iterable[npt.NDArray[np.float32]], pictures: int) -> Iterator[npt.NDArray[np.float32]]:
    """Batches until they hold so many pictures."""
    seen = 0
    for batch in batches:
        yield batch
        seen += len(batch)
        if seen >= pictures:
            return
