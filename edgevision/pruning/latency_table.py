"""How long single layers take on an engine at a few channel counts: a table that can be carried between machines."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgevision.errors import UsageError
from edgevision.files import write_json
from edgevision.pruning.macs import LayerShape

FORMAT = 1

# of a layer's channels, where it is measured; between them is interpolated
_FRACTIONS = (0.125, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class LayerPoint:
    """One layer at one number of channels, as it is timed.

    Attributes:
        kind: ``conv``, ``depthwise`` or ``linear``.
        in_channels: …
        out_channels: …
        groups: of the convolution.
        kernel: height and width.
        stride: likewise.
        padding: likewise, the same on both sides.
        dilation: likewise.
        input_size: height and width.
        bias: whether it adds one.
    """

    kind: str
    in_channels: int
    out_channels: int
    groups: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    input_size: tuple[int, ...]
    bias: bool

    @property
    def key(self) -> str:
        """Its name in the table's file."""
        sizes = (("k", self.kernel), ("s", self.stride), ("p", self.padding), ("d", self.dilation),
                 ("i", self.input_size))  # fmt: skip
        shape = " ".join(letter + "x".join(map(str, values)) for letter, values in sizes)
        return f"{self.kind} {self.in_channels}>{self.out_channels} g{self.groups} {shape}{' b' if self.bias else ''}"


@dataclass
class LatencyTable:
    """Measured times of layers.

    Attributes:
        target: the engine.
        engine_version: of its library.
        device: the processor, in words; see `edgevision.pipeline.layer_timing.device_name`.
        threads: of one inference.
        layers: `LayerPoint.key` → milliseconds of one run, batch 1, FP32.
    """

    target: str
    engine_version: str
    device: str
    threads: int = 1
    layers: dict[str, float] = field(default_factory=dict)

    @property
    def identity(self) -> dict[str, Any]:
        """What the times hold for."""
        return {
            "target": self.target, "engine_version": self.engine_version, "device": self.device,
            "threads": self.threads,
        }  # fmt: skip

    def missing(self, points: Iterable[LayerPoint]) -> list[LayerPoint]:
        """Those of ``points`` that were not measured, each once."""
        return [point for point in dict.fromkeys(points) if point.key not in self.layers]

    def save(self, path: str | Path) -> None:
        """Write the JSON file atomically. Raises `OutputError` where that is not possible."""
        write_json(path, {"format": FORMAT, **self.identity, "unit": "ms", "layers": dict(sorted(self.layers.items()))})

    @classmethod
    def open(cls, path: str | Path) -> LatencyTable:
        """Read a file that `save` wrote.

        Raises:
            UsageError: it is missing, damaged, or of a newer version.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"the latency table {path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise UsageError(f"{path} is no latency table: {error}; make one with --measure-latency") from error
        try:
            if values["format"] != FORMAT:
                raise UsageError(
                    f"the latency table {path} has format {values['format']}; this version reads {FORMAT}: measure it "
                    "again with --measure-latency"
                )
            layers = {str(key): float(value) for key, value in values["layers"].items()}
            table = cls(
                str(values["target"]), str(values["engine_version"]), str(values["device"]), int(values["threads"]),
                layers,
            )  # fmt: skip
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(f"the latency table {path} is damaged: {type(error).__name__}: {error}") from error
        wrong = next((key for key, value in layers.items() if not (math.isfinite(value) and value >= 0)), None)
        if wrong is not None:
            raise UsageError(f"the latency table {path} has no time for {wrong!r}: {layers[wrong]} ms")
        return table


def measurable(layer: LayerShape) -> bool:
    """Whether a layer can be timed alone: plain 2-D convolutions and linear layers. Others are left out of the sum."""
    if layer.kind == "linear":
        return True
    if len(layer.kernel) != 2 or len(layer.input_size) != 2:
        return False
    # what is left then are transposed convolutions and padding that differs by side
    sizes = zip(layer.input_size, layer.padding, layer.dilation, layer.kernel, layer.stride, strict=True)
    plain = tuple((size + 2 * pad - dil * (ker - 1) - 1) // step + 1 for size, pad, dil, ker, step in sizes)
    return plain == tuple(layer.output_size)


def widths(channels: int, groups: int = 1) -> list[int]:
    """Counts at which an axis that can be pruned is measured, ascending; the last is all of it.

    Multiples of 16 on wide layers and of 8 on others, which are the counts that kernels are written for; fewer on
    layers that have hardly so many. They do not depend on what the user rounds to, so that one table serves all.
    """
    step = 16 if channels >= 64 else 8 if channels >= 16 else 4 if channels >= 8 else 1
    step = math.lcm(step, groups)
    near = {min(channels, max(1, round(fraction * channels / step)) * step) for fraction in _FRACTIONS}
    return sorted({*near, channels})


def axes(layer: LayerShape) -> tuple[list[int], list[int]]:
    """Counts of input and output channels at which a layer is measured; a depthwise layer has only the first axis."""
    if layer.kind == "depthwise":
        channels = widths(layer.in_channels) if layer.in_terms or layer.out_terms else [layer.in_channels]
        return channels, [layer.out_channels]
    inputs = widths(layer.in_channels, layer.groups) if layer.in_terms else [layer.in_channels]
    outputs = widths(layer.out_channels, layer.groups) if layer.out_terms else [layer.out_channels]
    return inputs, outputs


def grid(layer: LayerShape) -> list[list[LayerPoint]]:
    """The layer at every pair of its `axes`: rows by input channels, columns by output channels."""
    inputs, outputs = axes(layer)
    return [[_point(layer, channels_in, channels_out) for channels_out in outputs] for channels_in in inputs]


def points_of(layers: Iterable[LayerShape]) -> list[LayerPoint]:
    """All that has to be timed for a network, each once."""
    found = (point for layer in layers if measurable(layer) for row in grid(layer) for point in row)
    return list(dict.fromkeys(found))


def _point(layer: LayerShape, channels_in: int, channels_out: int) -> LayerPoint:
    point = LayerPoint(
        layer.kind, channels_in, channels_out, layer.groups, layer.kernel, layer.stride, layer.padding, layer.dilation,
        layer.input_size, layer.bias,
    )  # fmt: skip
    if layer.kind != "depthwise":
        return point
    multiplier = layer.out_channels // layer.in_channels
    return replace(point, out_channels=channels_in * multiplier, groups=channels_in)
