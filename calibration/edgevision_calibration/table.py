"""`CalibrationTable`: what was observed of every activation on one graph, apart from how a target wants it.

Range methods are pure functions of it, so another method or another target costs no new run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgevision.dependencies import require
from edgevision.errors import CalibrationError
from edgevision.files import write_bytes, write_json
from edgevision_calibration.histogram import Histogram
from edgevision_calibration.ranges import RangeMethod

SCHEMA_VERSION = 3
# pictures are dealt out in turn to so many parts: leaving one out tells whether the ranges still grow
PARTS = 4
# about how many values of a tensor one picture brings into its histogram
SAMPLES = 1 << 12
# of more pictures each brings less: the histogram has enough
_FULL_PICTURES = 300


def samples_per_picture(pictures: int) -> int:
    """About how many values of a tensor each of so many pictures brings into its histogram."""
    return min(SAMPLES, max(SAMPLES * _FULL_PICTURES // max(pictures, 1), SAMPLES // 4))


class Digest(NamedTuple):
    """What a table takes in of one tensor ``[B, C, …]`` for some pictures.

    Attributes:
        values: some of its values, as many of each picture, float32 ``[B, samples]``.
        lows: least value of every channel in every picture, float32 ``[B, C]``.
        highs: greatest one, float32 ``[B, C]``.
        sums: sum of every channel over ``pixels`` pixels of every picture, float32 ``[B, C]``.
        pixels: how many pixels were summed in each.
    """

    values: npt.NDArray[np.float32]
    lows: npt.NDArray[np.float32]
    highs: npt.NDArray[np.float32]
    sums: npt.NDArray[np.float32]
    pixels: int

    @classmethod
    def of(
        cls,
        values: npt.NDArray[np.float32],
        lows: npt.NDArray[np.float32] | None = None,
        highs: npt.NDArray[np.float32] | None = None,
        *,
        samples: int = SAMPLES,
    ) -> Digest:
        """What was read of a tensor, all of it or a grid of its pixels, ``[B, C, …]``.

        Its extremes ``[B, C]`` are those of the values where they are not told; at least ``samples`` values of each
        picture are taken, where there are so many.
        """
        flat, by_channel = values.reshape(len(values), -1), values.reshape(*values.shape[:2], -1)
        lows = by_channel.min(axis=2) if lows is None else lows
        highs = by_channel.max(axis=2) if highs is None else highs
        return cls(flat[:, :: _stride(flat.shape[1], samples)].copy(), lows, highs, *channel_sums(values))

    @classmethod
    def joined(cls, parts: Sequence[Digest]) -> Digest:
        """The pictures of several, in their order."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            np.concatenate([part.values for part in parts]),
            np.concatenate([part.lows for part in parts]),
            np.concatenate([part.highs for part in parts]),
            np.concatenate([part.sums for part in parts]),
            parts[0].pixels,
        )


@lru_cache(maxsize=4096)
def _stride(count: int, samples: int) -> int:
    """How far apart the samples of ``count`` values lie."""
    stride = max(1, count // samples)
    # with a divisor in common it would meet the same columns, or the same channels, again and again
    while math.gcd(stride, count) > 1:
        stride += 1
    return stride


@lru_cache(maxsize=256)
def _ones(count: int) -> npt.NDArray[np.float32]:
    return np.ones(count, np.float32)


def channel_sums(values: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], int]:
    """Sum of every channel of ``[B, C, …]`` in every picture, float32 ``[B, C]``, and over how many pixels."""
    by_channel = values.reshape(*values.shape[:2], -1)
    pixels = by_channel.shape[2]
    # a product with ones is several times as quick as a sum
    return by_channel @ _ones(pixels), pixels


@dataclass
class TensorStatistics:
    """What was seen of one activation tensor ``[B, C, …]``.

    Attributes:
        histogram: about `samples_per_picture` of its values from each picture, or half of `SAMPLES` from those that
            equalization looked at; its ends are those of all values.
        channel_low: least value per channel, float32 ``[C]``.
        channel_high: greatest value per channel, float32 ``[C]``.
        channel_sum: sum per channel, float64 ``[C]``, over what was read of it (`edgevision_calibration.probe`).
        count_per_channel: values behind each ``channel_sum``.
        part_low: least value in each quarter of the pictures, which are dealt out in turn, float32 ``[4]``.
        part_high: greatest one, float32 ``[4]``.
        pictures: how many pictures were taken in.
    """

    histogram: Histogram
    channel_low: npt.NDArray[np.float32]
    channel_high: npt.NDArray[np.float32]
    channel_sum: npt.NDArray[np.float64]
    count_per_channel: int = 0
    part_low: npt.NDArray[np.float32] = field(default_factory=lambda: np.full(PARTS, np.inf, np.float32))
    part_high: npt.NDArray[np.float32] = field(default_factory=lambda: np.full(PARTS, -np.inf, np.float32))
    pictures: int = 0

    @classmethod
    def empty(cls, channels: int) -> TensorStatistics:
        """Statistics of nothing yet."""
        return cls(
            Histogram(),
            np.full(channels, np.inf, np.float32),
            np.full(channels, -np.inf, np.float32),
            np.zeros(channels, np.float64),
        )

    @property
    def low(self) -> float:
        """Least value seen."""
        return self.histogram.low

    @property
    def high(self) -> float:
        """Greatest value seen."""
        return self.histogram.high

    @property
    def channel_mean(self) -> npt.NDArray[np.float64]:
        """Mean per channel, float64 ``[C]``."""
        return self.channel_sum / max(self.count_per_channel, 1)

    @property
    def growth(self) -> float:
        """Share of the range, 0..1, that a quarter of the pictures adds to what the others saw, on average."""
        span = self.high - self.low
        if self.pictures < PARTS or not span > 0:
            return 0.0
        others = [np.arange(PARTS) != part for part in range(PARTS)]
        spans = [float(self.part_high[kept].max()) - float(self.part_low[kept].min()) for kept in others]
        return 1.0 - sum(spans) / (PARTS * span)

    def update(self, seen: Digest) -> None:
        """Take in some pictures.

        Raises:
            CalibrationError: a value is NaN or infinite.
        """
        least, greatest = seen.lows.min(axis=1), seen.highs.max(axis=1)
        # what is NaN or infinite shows in a sum
        if not math.isfinite(float(least.sum()) + float(greatest.sum()) + float(seen.sums.sum())):
            raise CalibrationError("an activation is NaN or infinite: check the weights and the calibration images")
        np.minimum(self.channel_low, seen.lows.min(axis=0), out=self.channel_low)
        np.maximum(self.channel_high, seen.highs.max(axis=0), out=self.channel_high)
        self.channel_sum += seen.sums.sum(axis=0, dtype=np.float64)
        part = np.arange(self.pictures, self.pictures + len(least)) % PARTS
        np.minimum.at(self.part_low, part, least)
        np.maximum.at(self.part_high, part, greatest)
        self.pictures += len(least)
        self.count_per_channel += len(least) * seen.pixels
        self.histogram.count_pictures(least.tolist(), greatest.tolist())
        self.histogram.update(seen.values, float(least.min()), float(greatest.max()))


@dataclass
class CalibrationTable:
    """Statistics of every activation of one graph.

    Attributes:
        graph_sha256: the canonical graph it was taken on.
        preprocess_digest: hash of the preprocess the pictures went through.
        images: how many pictures.
        tensors: tensor name → statistics.
        source: what the pictures were, for provenance.
        findings: what is doubtful about the pictures or their preprocess, as `Finding.to_dict` writes it.
        noise_gains: tensor name → power of the outputs' disturbance per power of rounding noise in the whole tensor,
            see `edgevision_calibration.equalization.Equalized`; empty where nobody asked.
    """

    graph_sha256: str
    preprocess_digest: str = ""
    images: int = 0
    tensors: dict[str, TensorStatistics] = field(default_factory=dict)
    source: str = ""
    findings: list[dict[str, str]] = field(default_factory=list)
    noise_gains: dict[str, float] = field(default_factory=dict)
    _intervals: dict[tuple[str, RangeMethod, bool], tuple[float, float]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __getitem__(self, name: str) -> TensorStatistics:
        if name not in self.tensors:
            raise CalibrationError(f"tensor {name!r} was not observed; calibrate this graph again")
        return self.tensors[name]

    def update(self, name: str, seen: Digest) -> None:
        """Take in what some pictures put into a tensor.

        Raises:
            CalibrationError: an activation is NaN or infinite; names the tensor.
        """
        self._intervals.clear()
        if name not in self.tensors:
            self.tensors[name] = TensorStatistics.empty(seen.lows.shape[1])
        try:
            self.tensors[name].update(seen)
        except CalibrationError as error:
            raise CalibrationError(f"tensor {name!r}: {error}") from None

    def interval(self, name: str, method: RangeMethod, *, symmetric: bool) -> tuple[float, float]:
        """Least and greatest value that a range method keeps of a tensor, found once for all the plans that ask for it.

        Raises:
            CalibrationError: the tensor was not observed.
        """
        key = (name, method, symmetric)
        if key not in self._intervals:
            self._intervals[key] = method(self[name].histogram, symmetric=symmetric)
        return self._intervals[key]

    def save(self, folder: str | Path) -> Path:
        """Write ``table.json`` and ``table.safetensors`` into ``folder``, atomically.

        Raises:
            OutputError: the folder cannot be written.
        """
        serialize = require("safetensors.numpy", purpose="store calibration tables").save
        arrays: dict[str, npt.NDArray[Any]] = {}
        for name, seen in self.tensors.items():
            arrays[f"{name}/counts"] = seen.histogram.counts
            arrays[f"{name}/low"] = seen.channel_low
            arrays[f"{name}/high"] = seen.channel_high
            arrays[f"{name}/sum"] = seen.channel_sum
            arrays[f"{name}/part_low"] = seen.part_low
            arrays[f"{name}/part_high"] = seen.part_high
        folder = Path(folder)
        # safetensors' own writer turns a full disk into an error that is no OSError
        write_bytes(folder / "table.safetensors", serialize(arrays))
        write_json(
            folder / "table.json",
            {
                "schema_version": SCHEMA_VERSION,
                "graph_sha256": self.graph_sha256,
                "preprocess_digest": self.preprocess_digest,
                "images": self.images,
                "source": self.source,
                "findings": self.findings,
                "noise_gains": self.noise_gains,
                "tensors": {
                    name: {
                        "exponent": seen.histogram.exponent,
                        "start": seen.histogram.start,
                        "low": seen.low,
                        "high": seen.high,
                        "mean_low": seen.histogram.mean_low,
                        "mean_high": seen.histogram.mean_high,
                        "count_per_channel": seen.count_per_channel,
                        "pictures": seen.pictures,
                    }
                    for name, seen in self.tensors.items()
                },
            },
        )
        return folder

    @classmethod
    def open(cls, folder: str | Path) -> CalibrationTable:
        """Read what `save` wrote.

        Raises:
            CalibrationError: missing, damaged or of a newer version.
        """
        load_file = require("safetensors.numpy", purpose="read calibration tables").load_file
        folder = Path(folder)
        try:
            values = json.loads((folder / "table.json").read_text(encoding="utf-8"))
            if values["schema_version"] < SCHEMA_VERSION:
                raise CalibrationError(f"{folder}: written by an older edgevision; calibrate again")
            if values["schema_version"] > SCHEMA_VERSION:
                raise CalibrationError(f"{folder}: written by a newer edgevision; upgrade or calibrate again")
            arrays = load_file(str(folder / "table.safetensors"))
            tensors = {name: _statistics(name, entry, arrays) for name, entry in values["tensors"].items()}
            return cls(
                str(values["graph_sha256"]),
                str(values["preprocess_digest"]),
                int(values["images"]),
                tensors,
                str(values["source"]),
                [dict(entry) for entry in values["findings"]],
                {str(name): float(gain) for name, gain in values["noise_gains"].items()},
            )
        except CalibrationError:
            raise
        except Exception as error:  # safetensors raises its own untyped errors
            raise CalibrationError(f"{folder}: not a readable calibration table: {error}") from error


def _statistics(name: str, entry: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> TensorStatistics:
    histogram = Histogram()
    histogram.counts = arrays[f"{name}/counts"]
    histogram.exponent, histogram.start = int(entry["exponent"]), int(entry["start"])
    histogram.low, histogram.high = float(entry["low"]), float(entry["high"])
    histogram.mean_low, histogram.mean_high = float(entry["mean_low"]), float(entry["mean_high"])
    histogram.pictures = int(entry["pictures"])
    return TensorStatistics(
        histogram,
        arrays[f"{name}/low"],
        arrays[f"{name}/high"],
        arrays[f"{name}/sum"],
        int(entry["count_per_channel"]),
        arrays[f"{name}/part_low"],
        arrays[f"{name}/part_high"],
        int(entry["pictures"]),
    )
