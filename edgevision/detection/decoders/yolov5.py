"""One output ``[B, N, 5 + C]``: boxes cxcywh in pixels of the input, objectness and class probabilities, all decoded.

What anchor heads of the YOLOv5 kind export; ``N`` counts three anchors at every cell of three strides.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgevision.detection.boxes import Array
from edgevision.detection.candidates import Candidates
from edgevision.detection.decoders import Family, Outputs
from edgevision.detection.decoders.common import at_strides, cells, class_rows, objects
from edgevision.preprocess import Preprocess


def decode(
    outputs: Outputs,
    size: tuple[int, int],
    *,
    confidence: float,
    multi_label: bool = False,
    strides: Sequence[int] = (8, 16, 32),
    anchors: int = 3,
    num_classes: int | None = None,
) -> list[Candidates]:
    """See the module and `edgevision.detection.decoders`.

    Args:
        strides: of the feature maps behind the predictions, in pixels: they tell how many predictions there are.
        anchors: predictions at each cell.
        num_classes: where it is known, other outputs are refused.
    """
    found = []
    for values in _rows(outputs, size, strides, anchors, num_classes):
        picked = objects(values[4], values[5:], confidence, multi_label)
        boxes = values[:4, picked.places]
        found.append(picked.around(boxes[:2], boxes[2:]))
    return found


def _rows(
    outputs: Outputs, size: tuple[int, int], strides: Sequence[int], anchors: int, num_classes: int | None
) -> Array:
    """The output as ``[B, 5 + C, N]``."""
    count = anchors * sum(rows * columns for rows, columns in cells(size, strides))
    places = f"{anchors} at each cell of {at_strides(size, strides)}"
    return class_rows("yolov5", outputs, count, 5, num_classes, values="5 + classes", places=places)


def count_classes(
    outputs: Outputs, size: tuple[int, int], *, strides: Sequence[int] = (8, 16, 32), anchors: int = 3, **_: object
) -> int:
    """Number of classes of such outputs."""
    return int(_rows(outputs, size, strides, anchors, None).shape[1]) - 5


FAMILY = Family(Preprocess((640, 640), "letterbox"), iou=0.45, count_classes=count_classes)
