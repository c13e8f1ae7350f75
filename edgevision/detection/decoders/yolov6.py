"""YOLOv6's anchor-free head (Li et al., 2022, arXiv 2209.02976; DFL: Li et al., 2020, arXiv 2006.04388, section 3.2).

Per stride ``s``: ``scores_{s}`` ``[B, C, H/s, W/s]`` logits, and ``boxes_{s}`` ``[B, 4, H/s, W/s]``, the distances
from the cell's centre to left, top, right and bottom in strides; with DFL ``[B, 4·(reg_max + 1), H/s, W/s]``, for each
side the logits of the distances 0 … reg_max. Only what passes the threshold, in logits, is decoded.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgevision.detection.boxes import Array
from edgevision.detection.candidates import Candidates
from edgevision.detection.decoders import Family, Outputs
from edgevision.detection.decoders.common import cells, expected_distances, logit, named_maps, pick, refuse, sigmoid
from edgevision.preprocess import Preprocess


def decode(
    outputs: Outputs,
    size: tuple[int, int],
    *,
    confidence: float,
    multi_label: bool = False,
    strides: Sequence[int] = (8, 16, 32),
    reg_max: int = 0,
    num_classes: int | None = None,
) -> list[Candidates]:
    """See the module and `edgevision.detection.decoders`.

    Args:
        strides: of the feature maps, in pixels.
        reg_max: greatest distance of DFL, in strides; 0 for plain distances.
        num_classes: where it is known, other heads are refused.
    """
    levels = _levels(outputs, size, strides, reg_max, num_classes)
    threshold = logit(confidence)
    found = []
    for picture in range(len(levels[0][0])):
        parts = [
            _decode_level(scores[picture], boxes[picture], stride, reg_max, threshold, multi_label)
            for (scores, boxes), stride in zip(levels, strides, strict=True)
        ]
        found.append(Candidates.join(parts))
    return found


def _levels(
    outputs: Outputs, size: tuple[int, int], strides: Sequence[int], reg_max: int, num_classes: int | None
) -> list[tuple[Array, Array]]:
    """Scores and boxes of each stride, their shapes checked."""
    sides = 4 * (reg_max + 1) if reg_max else 4
    classes = "classes" if num_classes is None else str(num_classes)
    shapes = cells(size, strides)
    expected = ", ".join(
        f"scores_{stride} [B, {classes}, {rows}, {columns}] and boxes_{stride} [B, {sides}, {rows}, {columns}]"
        for stride, (rows, columns) in zip(strides, shapes, strict=True)
    )
    names = [f"{kind}_{stride}" for kind in ("scores", "boxes") for stride in strides]
    maps = named_maps("yolov6", outputs, names, expected)
    levels = list(zip(maps[: len(strides)], maps[len(strides) :], strict=True))
    channels = num_classes or levels[0][0].shape[1]
    for (scores, boxes), (rows, columns) in zip(levels, shapes, strict=True):
        if scores.shape[1:] != (channels, rows, columns) or boxes.shape[1:] != (sides, rows, columns):
            raise refuse("yolov6", outputs, expected)
    return levels


def _decode_level(
    scores: Array, boxes: Array, stride: int, reg_max: int, threshold: float, multi_label: bool
) -> Candidates:
    classes, _, columns = scores.shape
    picked = pick(scores.reshape(classes, -1), threshold, multi_label)
    distances = boxes.reshape(len(boxes), -1)[:, picked.places]
    if reg_max:
        distances = expected_distances(distances, reg_max)
    row, column = np.divmod(picked.places, columns)
    center_x, center_y = column + np.float32(0.5), row + np.float32(0.5)
    left, top, right, bottom = distances
    corners = np.stack([center_x - left, center_y - top, center_x + right, center_y + bottom], axis=1)
    return picked._replace(scores=sigmoid(picked.scores)).at(corners * np.float32(stride))


def count_classes(outputs: Outputs, size: tuple[int, int], *, strides: Sequence[int] = (8, 16, 32), **_: object) -> int:
    """Number of classes of such outputs."""
    return int(outputs[f"scores_{strides[0]}"].shape[1])


FAMILY = Family(Preprocess((640, 640), "letterbox"), iou=0.65, count_classes=count_classes)
