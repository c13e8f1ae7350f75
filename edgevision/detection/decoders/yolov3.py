"""YOLOv3's anchor head (Redmon & Farhadi, 2018, arXiv 1804.02767, section 2.1).

Per stride ``s``: ``anchors_{s}`` ``[B, A·(4 + 1 + C), H/s, W/s]``, for each anchor raw tx, ty, tw, th, objectness and
class logits. Box: ``(σ(tx) + column)·s``, ``anchor width·e^tw``; score: ``σ(objectness)·σ(class)``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgevision.detection.boxes import Array
from edgevision.detection.candidates import Candidates
from edgevision.detection.decoders import Family, Outputs
from edgevision.detection.decoders.common import (
    MAX_EXPONENT,
    cells,
    logit,
    named_maps,
    pick,
    refuse,
    sigmoid,
)
from edgevision.preprocess import Preprocess

# width and height in pixels, section 2.3, for inputs of 416 pixels; the finest scale first
ANCHORS = (
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)
_STRIDES = (8, 16, 32)


def decode(
    outputs: Outputs,
    size: tuple[int, int],
    *,
    confidence: float,
    multi_label: bool = False,
    strides: Sequence[int] = _STRIDES,
    anchors: Sequence[Sequence[Sequence[float]]] = ANCHORS,
    num_classes: int | None = None,
) -> list[Candidates]:
    """See the module and `edgevision.detection.decoders`.

    Args:
        strides: of the feature maps, in pixels.
        anchors: for each stride, in the same order, width and height of its anchors in pixels of the input.
        num_classes: where it is known, other heads are refused.
    """
    levels = _levels(outputs, size, strides, anchors, num_classes)
    found = []
    for picture in range(len(levels[0])):
        parts = [
            _decode_level(level[picture], stride, np.asarray(own, np.float32), confidence, multi_label)
            for level, stride, own in zip(levels, strides, anchors, strict=True)
        ]
        found.append(Candidates.join(parts))
    return found


def _levels(
    outputs: Outputs,
    size: tuple[int, int],
    strides: Sequence[int],
    anchors: Sequence[Sequence[Sequence[float]]],
    num_classes: int | None,
) -> list[Array]:
    """Maps ``[B, A, 5 + C, rows, columns]`` of each stride, their shapes checked."""
    each = "(5 + classes)" if num_classes is None else str(5 + num_classes)
    expected = ", ".join(
        f"anchors_{stride} [B, {len(own)}·{each}, {rows}, {columns}]"
        for stride, own, (rows, columns) in zip(strides, anchors, cells(size, strides), strict=True)
    )
    maps = named_maps("yolov3", outputs, [f"anchors_{stride}" for stride in strides], expected)
    values = 5 + num_classes if num_classes else maps[0].shape[1] // len(anchors[0])
    levels = []
    for level, own, (rows, columns) in zip(maps, anchors, cells(size, strides), strict=True):
        if level.shape[1:] != (len(own) * values, rows, columns) or values < 6:
            raise refuse("yolov3", outputs, expected)
        levels.append(level.reshape(len(level), len(own), values, rows, columns))
    return levels


def _decode_level(level: Array, stride: int, anchors: Array, confidence: float, multi_label: bool) -> Candidates:
    columns = level.shape[3]
    level = level.reshape(*level.shape[:2], -1)
    # a score is never above its objectness
    anchor, cell = np.nonzero(level[:, 4] > logit(confidence))
    values = level[anchor, :, cell].T
    scores = sigmoid(values[5:]) * sigmoid(values[4])
    picked = pick(scores, confidence, multi_label)
    values, anchor, cell = values[:, picked.places], anchor[picked.places], cell[picked.places]
    row, column = np.divmod(cell, columns)
    centers = (sigmoid(values[:2]) + np.stack([column, row])) * stride
    sides = np.exp(np.minimum(values[2:4], MAX_EXPONENT)) * anchors[anchor].T
    return picked.around(centers, sides)


def count_classes(
    outputs: Outputs,
    size: tuple[int, int],
    *,
    strides: Sequence[int] = _STRIDES,
    anchors: Sequence[Sequence[Sequence[float]]] = ANCHORS,
    **_: object,
) -> int:
    """Number of classes of such outputs."""
    return int(outputs[f"anchors_{strides[0]}"].shape[1]) // len(anchors[0]) - 5


FAMILY = Family(Preprocess((416, 416), "letterbox"), iou=0.45, count_classes=count_classes)
