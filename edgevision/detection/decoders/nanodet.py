"""NanoDet-Plus (RangiLyu, 2021; github.com/RangiLyu/nanodet): one output ``[B, N, C + 4·(reg_max + 1)]``.

Class probabilities, then for left, top, right and bottom the logits of the distances 0 … reg_max in strides (DFL:
Li et al., 2020, arXiv 2006.04388), measured from the corner of the cell.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgevision.detection.boxes import Array
from edgevision.detection.candidates import Candidates
from edgevision.detection.decoders import Family, Outputs
from edgevision.detection.decoders.common import at_strides, class_rows, expected_distances, grid, pick
from edgevision.preprocess import Preprocess

_STRIDES = (8, 16, 32, 64)


def decode(
    outputs: Outputs,
    size: tuple[int, int],
    *,
    confidence: float,
    multi_label: bool = False,
    strides: Sequence[int] = _STRIDES,
    reg_max: int = 7,
    num_classes: int | None = None,
) -> list[Candidates]:
    """See the module and `edgevision.detection.decoders`.

    Args:
        strides: of the feature maps, in pixels, in the order of the predictions.
        reg_max: greatest distance, in strides.
        num_classes: where it is known, other outputs are refused.
    """
    corners, scales = grid(size, strides)
    found = []
    for values in _rows(outputs, size, strides, reg_max, num_classes, len(scales)):
        classes = len(values) - 4 * (reg_max + 1)
        picked = pick(values[:classes], confidence, multi_label)
        left, top, right, bottom = expected_distances(values[classes:, picked.places], reg_max)
        column, row = corners[:, picked.places]
        boxes = np.stack([column - left, row - top, column + right, row + bottom]) * scales[picked.places]
        found.append(picked.at(boxes.T))
    return found


def _rows(
    outputs: Outputs, size: tuple[int, int], strides: Sequence[int], reg_max: int, num_classes: int | None, count: int
) -> Array:
    """The output as ``[B, C + 4·(reg_max + 1), N]``."""
    sides = 4 * (reg_max + 1)
    places = at_strides(size, strides)
    return class_rows("nanodet", outputs, count, sides, num_classes, values=f"classes + {sides}", places=places)


def count_classes(
    outputs: Outputs, size: tuple[int, int], *, strides: Sequence[int] = _STRIDES, reg_max: int = 7, **_: object
) -> int:
    """Number of classes of such outputs."""
    count = len(grid(size, strides)[1])
    return int(_rows(outputs, size, strides, reg_max, None, count).shape[1]) - 4 * (reg_max + 1)


FAMILY = Family(
    Preprocess((416, 416), color="BGR", scale=1.0, mean=(103.53, 116.28, 123.675), std=(57.375, 57.12, 58.395)),
    confidence=0.35,
    iou=0.6,
    count_classes=count_classes,
)
