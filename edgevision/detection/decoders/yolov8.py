"""One output ``[B, 4 + C, N]``: boxes cxcywh in pixels of the input, then class probabilities, with no objectness.

What anchor-free heads of the YOLOv8 kind export with their decoding in the graph; ``[B, N, 4 + C]`` is taken too.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgevision.detection.boxes import Array
from edgevision.detection.candidates import Candidates
from edgevision.detection.decoders import Family, Outputs
from edgevision.detection.decoders.common import at_strides, cells, class_rows, pick
from edgevision.preprocess import Preprocess


def decode(
    outputs: Outputs,
    size: tuple[int, int],
    *,
    confidence: float,
    multi_label: bool = False,
    strides: Sequence[int] = (8, 16, 32),
    num_classes: int | None = None,
) -> list[Candidates]:
    """See the module and `edgevision.detection.decoders`.

    Args:
        strides: of the feature maps behind the predictions, in pixels: they tell how many predictions there are.
        num_classes: where it is known, other outputs are refused.
    """
    found = []
    for values in _rows(outputs, size, strides, num_classes):
        picked = pick(values[4:], confidence, multi_label)
        boxes = values[:4, picked.places]
        found.append(picked.around(boxes[:2], boxes[2:]))
    return found


def _rows(outputs: Outputs, size: tuple[int, int], strides: Sequence[int], num_classes: int | None) -> Array:
    """The output as ``[B, 4 + C, N]``."""
    count = sum(rows * columns for rows, columns in cells(size, strides))
    return class_rows(
        "yolov8", outputs, count, 4, num_classes, values="4 + classes", places=at_strides(size, strides),
        channels_first=True,
    )  # fmt: skip


def count_classes(outputs: Outputs, size: tuple[int, int], *, strides: Sequence[int] = (8, 16, 32), **_: object) -> int:
    """Number of classes of such outputs."""
    return int(_rows(outputs, size, strides, None).shape[1]) - 4


FAMILY = Family(Preprocess((640, 640), "letterbox"), iou=0.7, count_classes=count_classes)
