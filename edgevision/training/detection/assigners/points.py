"""The points of anchor-free heads: the centres of all cells of all levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgevision.training.detection.boxes import centres
from edgevision.training.detection.targets import Targets


@dataclass(frozen=True)
class Points:
    """L points, level after level, row after row.

    Attributes:
        centres: float32 ``[L, 2]``, x and y in pixels.
        strides: float32 ``[L]``, pixels from one point to its neighbour.
        shapes: height and width of each level's map.
        level_strides: the stride of each level.
    """

    centres: Tensor
    strides: Tensor
    shapes: tuple[tuple[int, int], ...]
    level_strides: tuple[int, ...]

    @property
    def counts(self) -> list[int]:
        """How many points each level has."""
        return [height * width for height, width in self.shapes]


def grid_points(shapes: Sequence[tuple[int, int]], strides: Sequence[int], device: torch.device) -> Points:
    """The points of maps ``[..., height, width]``: cell (row, column) is at ``((column + ½) s, (row + ½) s)``."""
    centres, steps = [], []
    for (height, width), stride in zip(shapes, strides, strict=True):
        rows, columns = torch.meshgrid(
            torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
        )
        centres.append((torch.stack((columns, rows), dim=-1).reshape(-1, 2) + 0.5) * stride)
        steps.append(torch.full((height * width,), float(stride), device=device))
    return Points(torch.cat(centres), torch.cat(steps), tuple(shapes), tuple(strides))


def points_inside(points: Points, targets: Targets) -> Tensor:
    """Which points lie inside which valid box: bool ``[B, M, L]``.

    A box that holds no point, as boxes smaller than a stride may, gets the nearest of the finest level, so that no
    object goes without anybody to answer for it (the papers leave those out).
    """
    x, y = points.centres[:, 0], points.centres[:, 1]
    left, top, right, bottom = targets.boxes[..., None].unbind(2)  # [B, M, 1] each
    inside = (x > left) & (x < right) & (y > top) & (y < bottom) & targets.valid[..., None]
    nearest = _nearest_of_finest_level(points, targets.boxes)[..., None]
    lonely = targets.valid[..., None] & ~inside.any(dim=-1, keepdim=True)
    return inside.scatter(2, nearest, inside.gather(2, nearest) | lonely)


def _nearest_of_finest_level(points: Points, boxes: Tensor) -> Tensor:
    """Index of the point nearest to each box's centre: ``[B, M, 4]`` → int64 ``[B, M]``."""
    finest = min(range(len(points.shapes)), key=lambda level: points.level_strides[level])
    height, width = points.shapes[finest]
    cell = (centres(boxes) / points.level_strides[finest]).floor().to(torch.int64)
    column, row = cell[..., 0].clamp(0, width - 1), cell[..., 1].clamp(0, height - 1)
    return sum(points.counts[:finest]) + row * width + column
