"""A few values of every activation, channel by channel: what the choice of equalization factors looks at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgevision.errors import CalibrationError
from edgevision.graph import Graph
from edgevision_calibration.observe import expose, observed_tensors, open_session

_SEED = 0


@dataclass(frozen=True)
class ChannelSamples:
    """What a few pictures put into one tensor.

    Attributes:
        values: float32 ``[samples, C]``, from pixels drawn at random.
        lows: least value of every channel in every picture, float32 ``[pictures, C]``.
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
    names = [name for name in observed_tensors(graph) if name != graph.input_name]
    session = open_session(expose(graph, names), threads=threads)
    generator = np.random.default_rng(_SEED)
    values: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in (graph.input_name, *names)}
    lows: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in values}
    highs: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in values}
    sizes: dict[str, int] = {}
    seen = 0
    for batch in batches:
        outputs = session.run(names, {graph.input_name: batch})
        for name, tensor in zip(values, [batch, *outputs], strict=True):
            by_channel = tensor.reshape(tensor.shape[0], tensor.shape[1], -1)
            lows[name].append(by_channel.min(axis=2))
            highs[name].append(by_channel.max(axis=2))
            if not (np.isfinite(lows[name][-1]).all() and np.isfinite(highs[name][-1]).all()):
                raise CalibrationError(
                    f"tensor {name!r}: an activation is NaN or infinite: check the weights and the calibration images"
                )
            sizes[name] = by_channel.shape[2]
            if by_channel.shape[2] > pixels:
                by_channel = by_channel[:, :, generator.integers(0, by_channel.shape[2], pixels)]
            values[name].append(np.moveaxis(by_channel, 1, 2).reshape(-1, by_channel.shape[1]).copy())
        seen += len(batch)
        if seen >= pictures:
            break
    if seen == 0:
        raise CalibrationError("there are no calibration images: give --data a folder or data set that holds some")
    return {
        name: ChannelSamples(
            np.concatenate(values[name]), np.concatenate(lows[name]), np.concatenate(highs[name]), sizes[name]
        )
        for name in values
    }
