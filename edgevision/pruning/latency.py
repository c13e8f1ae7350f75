"""A network's latency at any channel counts, predicted from a table of its layers' measured times.

As NetAdapt does (Yang et al. 2018, arXiv:1804.03230, section 3.3), the sum over the layers is taken for the network's
latency; as HALP does (Shen et al. 2021, arXiv:2110.10811, section 3), channels go in blocks by the importance lost for
the latency saved (`edgevision.pruning.planning.plan_counts`, which is handed this sum as its cost).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgevision.errors import UsageError
from edgevision.pruning.latency_table import LatencyTable, axes, grid, measurable, points_of
from edgevision.pruning.macs import CostModel, Counts, LayerShape

FloatArray = npt.NDArray[np.float64]

# alternating projections converge geometrically; grids have at most 5 × 5 points
_PROJECTIONS = 200


@dataclass
class _LayerTime:
    """Times of one layer on the grid of its channel counts, and what was interpolated so far."""

    shape: LayerShape
    inputs: list[int]
    outputs: list[int]
    times: FloatArray
    known: dict[tuple[int, int], float] = field(default_factory=dict)

    def at(self, channels_in: int, channels_out: int) -> float:
        where = (channels_in, channels_out)
        if where not in self.known:
            # below the smallest measured count nothing more is promised
            along = np.array([np.interp(channels_out, self.outputs, row) for row in self.times])
            self.known[where] = float(np.interp(channels_in, self.inputs, along)) * self.shape.calls
        return self.known[where]


class LatencyModel:
    """Milliseconds of the convolutions and linear layers of a network at any counts of channels.

    Other operations (additions, pooling, attention) are not in it; `edgevision.pipeline.prune_latency` measures the
    whole network and corrects for them.

    Attributes:
        not_measured: layers that cannot be timed alone.
    """

    def __init__(self, table: LatencyTable, costs: CostModel) -> None:
        """Take the times of a network's layers out of a table.

        Raises:
            UsageError: the table lacks some.
        """
        points = points_of(costs.layers)
        if missing := table.missing(points):
            raise UsageError(
                f"the latency table lacks {len(missing)} of the {len(points)} layers and widths of this network, e.g. "
                f"{missing[0].key!r}: measure this network's own with --measure-latency --target {table.target}"
            )
        self.full = dict(costs.full)
        self.not_measured = [layer.name for layer in costs.layers if not measurable(layer)]
        self._layers = [_layer_time(layer, table) for layer in costs.layers if measurable(layer)]

    def __call__(self, counts: Counts | None = None) -> float:
        """Predicted milliseconds of all layers; groups that are not named are whole."""
        return sum(self.by_layer(counts).values())

    def by_layer(self, counts: Counts | None = None) -> dict[str, float]:
        """Layer → predicted milliseconds."""
        kept: Mapping[str, int] = counts or {}
        found = {}
        for layer in self._layers:
            channels_in, channels_out, _ = layer.shape.at(kept, self.full)
            found[layer.shape.name] = layer.at(channels_in, channels_out)
        return found


def _layer_time(layer: LayerShape, table: LatencyTable) -> _LayerTime:
    inputs, outputs = axes(layer)
    measured = np.array([[table.layers[point.key] for point in row] for row in grid(layer)], np.float64)
    smooth = monotone(measured)
    if layer.kind == "depthwise":
        # one axis: what goes in comes out
        return _LayerTime(layer, inputs, [layer.out_channels], smooth)
    return _LayerTime(layer, inputs, outputs, smooth)


def monotone(times: FloatArray) -> FloatArray:
    """The nearest times that never fall as channels are added, in the sense of least squares.

    More channels cannot take less time where fewer could be padded to as many; where that was measured it is noise, or
    a kernel that fewer channels miss, and then removing them saves nothing. Isotonic regression in two variables: R.
    Dykstra and T. Robertson (1982), An algorithm for isotonic regression for two or more independent variables, Annals
    of Statistics 10(3).

    Args:
        times: float64 [widths in, widths out].
    """
    by_column, by_row = np.zeros_like(times), np.zeros_like(times)
    current = times.astype(np.float64)
    for _ in range(_PROJECTIONS):
        rows = np.apply_along_axis(_pool, 1, current + by_row)
        by_row = current + by_row - rows
        columns = np.apply_along_axis(_pool, 0, rows + by_column)
        by_column = rows + by_column - columns
        settled = np.allclose(columns, current, rtol=1e-12, atol=0)
        current = columns
        if settled:
            break
    # what the projections leave of falls, below rounding
    rising: FloatArray = np.maximum.accumulate(np.maximum.accumulate(current, axis=0), axis=1)
    return rising


def _pool(values: FloatArray) -> FloatArray:
    """Isotonic regression of one row: neighbours that fall share their mean (pool adjacent violators)."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        mean, size = float(value), 1
        while blocks and blocks[-1][0] > mean:
            before, count = blocks.pop()
            mean, size = (mean * size + before * count) / (size + count), size + count
        blocks.append((mean, size))
    return np.concatenate([np.full(size, mean) for mean, size in blocks])
