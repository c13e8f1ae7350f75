"""Raw maps into boxes, with gradients. What the device does in numpy (`edgevision.detection.decoders`) is the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgevision.detection.decoders.common import MAX_EXPONENT
from edgevision.training.detection.assigners.points import Points, grid_points
from edgevision.training.detection.boxes import around, centres
from edgevision.training.detection.losses.dfl import expected_distance


@dataclass(frozen=True)
class AnchorFreeMaps:
    """The maps of an anchor-free head, point by point.

    Attributes:
        logits: ``[B, L, C]``.
        sides: ``[B, L, 4, reg_max + 1]``, logits of the distances to the left, top, right and bottom in strides;
            with a reg_max of 0, ``[B, L, 4]``, the distances themselves.
        points: the L points.
    """

    logits: Tensor
    sides: Tensor
    points: Points

    def boxes(self) -> Tensor:
        """Left, top, right, bottom in pixels: ``[B, L, 4]``."""
        distances = self.sides if self.sides.dim() == 3 else expected_distance(self.sides)
        pixels = distances * self.points.strides[:, None]
        middles = self.points.centres
        return torch.cat((middles - pixels[..., :2], middles + pixels[..., 2:]), dim=-1)


def anchor_free_maps(outputs: Mapping[str, Tensor], strides: Sequence[int], reg_max: int) -> AnchorFreeMaps:
    """Flatten ``scores_{s}`` ``[B, C, H/s, W/s]`` and ``boxes_{s}`` ``[B, 4 (reg_max + 1), H/s, W/s]``."""
    scores = [outputs[f"scores_{stride}"] for stride in strides]
    logits = torch.cat([level.flatten(2) for level in scores], dim=2).transpose(1, 2)
    sides = torch.cat([outputs[f"boxes_{stride}"].flatten(2) for stride in strides], dim=2).transpose(1, 2)
    points = grid_points([(level.shape[2], level.shape[3]) for level in scores], strides, logits.device)
    return AnchorFreeMaps(logits, sides.unflatten(2, (4, reg_max + 1)) if reg_max else sides, points)


@dataclass(frozen=True)
class AnchorMaps:
    """The maps of YOLOv3's head, place by place: level after level, anchor after anchor, row after row.

    Attributes:
        values: ``[B, N, 5 + C]``: tx, ty, tw, th, logits of the objectness and of the classes.
        anchors: float32 ``[N, 2]``, width and height in pixels of each place's anchor.
        corners: float32 ``[N, 2]``, column and row of its cell.
        strides: float32 ``[N]``, pixels of its cell.
        shapes: height and width of each level's map.
    """

    values: Tensor
    anchors: Tensor
    corners: Tensor
    strides: Tensor
    shapes: tuple[tuple[int, int], ...]

    def boxes(self) -> Tensor:
        """Left, top, right, bottom in pixels: ``[B, N, 4]``; centre ``(σ(tx) + column) s``, width ``p_w e^tw``."""
        return self.boxes_of(self.values, self.anchors, self.corners, self.strides)

    def boxes_at(self, picture: Tensor, place: Tensor) -> Tensor:
        """The same of a few places: indices ``[P]`` twice → ``[P, 4]``."""
        return self.boxes_of(self.values[picture, place], self.anchors[place], self.corners[place], self.strides[place])

    @staticmethod
    def boxes_of(values: Tensor, anchors: Tensor, corners: Tensor, strides: Tensor) -> Tensor:
        """Boxes ``[..., 4]`` of values ``[..., 5 + C]`` at places of which the rest is said."""
        middles = (values[..., :2].sigmoid() + corners) * strides[:, None]
        half = values[..., 2:4].clamp(max=MAX_EXPONENT).exp() * anchors / 2
        return around(middles, half)


def anchor_maps(
    outputs: Mapping[str, Tensor], strides: Sequence[int], anchors: Sequence[Sequence[Sequence[float]]]
) -> AnchorMaps:
    """Flatten ``anchors_{s}`` ``[B, A (5 + C), H/s, W/s]``, of which the A are the anchors of that stride."""
    values, sides, corners, steps, shapes = [], [], [], [], []
    for stride, own in zip(strides, anchors, strict=True):
        level = outputs[f"anchors_{stride}"]
        height, width = level.shape[2:]
        values.append(level.unflatten(1, (len(own), -1)).permute(0, 1, 3, 4, 2).flatten(1, 3))
        sides.append(level.new_tensor(own).repeat_interleave(height * width, dim=0))
        cells = (grid_points([(height, width)], [1], level.device).centres - 0.5).repeat(len(own), 1)
        corners.append(cells)
        steps.append(level.new_full((len(cells),), float(stride)))
        shapes.append((height, width))
    return AnchorMaps(torch.cat(values, 1), torch.cat(sides), torch.cat(corners), torch.cat(steps), tuple(shapes))


def default_box_maps(
    outputs: Mapping[str, Tensor], priors: Sequence[Sequence[Sequence[float]]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Flatten ``scores_{i}`` ``[B, A (C + 1), h, w]`` and ``boxes_{i}`` ``[B, A 4, h, w]`` of SSD's head.

    Args:
        outputs: the maps of all levels.
        priors: for each level width and height of its A default boxes, as shares of the input's.

    Returns:
        logits ``[B, P, C + 1]``, offsets ``[B, P, 4]``, and the default boxes ``[P, 4]``: centre x and y, width and
        height, as shares of the input's; level after level, default box after default box, row after row.
    """
    logits, offsets, defaults = [], [], []
    for level, own in enumerate(priors):
        scores, boxes = outputs[f"scores_{level}"], outputs[f"boxes_{level}"]
        height, width = scores.shape[2:]
        logits.append(scores.unflatten(1, (len(own), -1)).permute(0, 1, 3, 4, 2).flatten(1, 3))
        offsets.append(boxes.unflatten(1, (len(own), 4)).permute(0, 1, 3, 4, 2).flatten(1, 3))
        middles = grid_points([(height, width)], [1], scores.device).centres / scores.new_tensor((width, height))
        shares = scores.new_tensor(own).repeat_interleave(height * width, dim=0)
        defaults.append(torch.cat((middles.repeat(len(own), 1), shares), dim=1))
    return torch.cat(logits, 1), torch.cat(offsets, 1), torch.cat(defaults)


def decode_offsets(offsets: Tensor, defaults: Tensor, variances: Sequence[float]) -> Tensor:
    """SSD's boxes, left, top, right, bottom: ``[..., P, 4]`` offsets and ``[P, 4]`` default boxes → ``[..., P, 4]``."""
    middles = defaults[:, :2] + offsets[..., :2] * variances[0] * defaults[:, 2:]
    half = (offsets[..., 2:] * variances[1]).clamp(max=MAX_EXPONENT).exp() * defaults[:, 2:] / 2
    return around(middles, half)


def encode_offsets(boxes: Tensor, defaults: Tensor, variances: Sequence[float]) -> Tensor:
    """What `decode_offsets` makes the boxes of: ``[..., P, 4]``, with area, → ``[..., P, 4]``."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return torch.cat(
        (
            (centres(boxes) - defaults[:, :2]) / defaults[:, 2:] / variances[0],
            (sides / defaults[:, 2:]).log() / variances[1],
        ),
        dim=-1,
    )
