"""YOLOX (Ge et al., 2021, arXiv 2107.08430): one output ``[B, N, 5 + C]``.

Objectness and classes are probabilities. The box is raw, as its ONNX files usually have it: the centre in strides from
the cell's corner, width and height as logarithms in strides; or decoded in the graph, cxcywh in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgevision.detection.boxes import Array
from edgevision.detection.candidates import Candidates
from edgevision.detection.decoders import Family, Outputs
from edgevision.detection.decoders.common import MAX_EXPONENT, at_strides, class_rows, grid, objects
from edgevision.preprocess import Preprocess


def decode(
    outputs: Outputs,
    size: tuple[int, int],
    *,
    confidence: float,
    multi_label: bool = False,
    strides: Sequence[int] = (8, 16, 32),
    decoded: bool = False,
    num_classes: int | None = None,
) -> list[Candidates]:
    """See the module and `edgevision.detection.decoders`.

    Args:
        strides: of the feature maps, in pixels, in the order of the predictions.
        decoded: whether the graph has made pixels of its boxes.
        num_classes: where it is known, other outputs are refused.
    """
    corners, scales = grid(size, strides)
    found = []
    for values in _rows(outputs, size, strides, num_classes, len(scales)):
        picked = objects(values[4], values[5:], confidence, multi_label)
        places = picked.places
        centers, sides = values[:2, places], values[2:4, places]
        if not decoded:
            centers = (centers + corners[:, places]) * scales[places]
            sides = np.exp(np.minimum(sides, MAX_EXPONENT)) * scales[places]
        found.append(picked.around(centers, sides))
    return found


def _rows(
    outputs: Outputs, size: tuple[int, int], strides: Sequence[int], num_classes: int | None, count: int
) -> Array:
    """The output as ``[B, 5 + C, N]``."""
    places = at_strides(size, strides)
    return class_rows("yolox", outputs, count, 5, num_classes, values="5 + classes", places=places)


def count_classes(outputs: Outputs, size: tuple[int, int], *, strides: Sequence[int] = (8, 16, 32), **_: object) -> int:
    """Number of classes of such outputs."""
    count = len(grid(size, strides)[1])
    return int(_rows(outputs, size, strides, None, count).shape[1]) - 5


# its networks see pixels as they are, in OpenCV's order
FAMILY = Family(Preprocess((640, 640), "letterbox", color="BGR", scale=1.0), iou=0.45, count_classes=count_classes)
