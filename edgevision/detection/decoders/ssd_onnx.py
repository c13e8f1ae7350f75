"""Boxes and class probabilities that the graph has decoded already, one output each, with no suppression.

``boxes`` ``[B, N, 4]`` and ``scores`` ``[B, N, C]``, as SSDs of torchvision, TensorFlow and many others are exported;
for one picture ``[N, 4]`` and ``[N, C]`` do as well.
"""

from __future__ import annotations

import numpy as np

from edgevision.detection.boxes import Array, cxcywh_to_xyxy
from edgevision.detection.candidates import Candidates
from edgevision.detection.decoders import Family, Outputs
from edgevision.detection.decoders.common import Shapes, pick, refuse
from edgevision.errors import UsageError
from edgevision.preprocess import Preprocess
from edgevision.registry import unknown_name

# order of a box's values → how it is brought to left, top, right, bottom
_ORDERS = ("xyxy", "yxyx", "cxcywh")
_EXPECTED = "boxes [B, N, 4] and scores [B, N, C], by these names or told apart by their shapes"


def decode(
    outputs: Outputs,
    size: tuple[int, int],
    *,
    confidence: float,
    multi_label: bool = False,
    order: str = "xyxy",
    normalized: bool = False,
    background: int | None = None,
    boxes: str | None = None,
    scores: str | None = None,
) -> list[Candidates]:
    """See the module and `edgevision.detection.decoders`.

    Args:
        order: of a box's values: ``xyxy``, ``yxyx`` (TensorFlow) or ``cxcywh``.
        normalized: whether boxes are shares of the input's width and height, rather than pixels.
        background: column of ``scores`` that is no class; later columns count from one less. None where there is none.
        boxes: name of the boxes' output; by default ``boxes``, else the one with 4 columns.
        scores: name of the scores' output; by default ``scores``, else the other one.
    """
    if order not in _ORDERS:
        raise UsageError(unknown_name("order of a box", order, _ORDERS))
    corners, chances = _find(outputs, boxes, scores)
    if background is not None:
        chances = np.delete(chances, background, axis=2)
    height, width = size
    unit = np.asarray([width, height, width, height] if normalized else [1, 1, 1, 1], np.float32)
    found = []
    for own_boxes, own_scores in zip(corners, chances, strict=True):
        picked = pick(own_scores.T, confidence, multi_label)
        found.append(picked.at(_ordered(own_boxes[picked.places], order) * unit))
    return found


def _ordered(boxes: Array, order: str) -> Array:
    if order == "cxcywh":
        return cxcywh_to_xyxy(boxes)
    return boxes[:, [1, 0, 3, 2]] if order == "yxyx" else boxes


def _find(outputs: Outputs, boxes: str | None, scores: str | None) -> tuple[Array, Array]:
    """Boxes ``[B, N, 4]`` and scores ``[B, N, C]``."""
    tables = {name: value[None] if value.ndim == 2 else value for name, value in outputs.items()}
    names = table_names({name: value.shape for name, value in tables.items()}, boxes, scores)
    if names is None:
        raise refuse("ssd_onnx", outputs, _EXPECTED)
    return tables[names[0]], tables[names[1]]


def table_names(shapes: Shapes, boxes: str | None, scores: str | None) -> tuple[str, str] | None:
    """Names of the boxes ``[B, N, 4]`` and scores ``[B, N, C]``; None where they cannot be told. See `decode`."""
    tables = {name: tuple(shape) for name, shape in shapes.items() if len(shape) == 3}
    first, second = boxes or "boxes", scores or "scores"
    if boxes is None and first not in tables:
        fours = [name for name, shape in tables.items() if shape[2] == 4 and name != second]
        first = fours[0] if len(fours) == 1 else first
    if scores is None and second not in tables:
        others = [name for name in tables if name != first]
        second = others[0] if len(others) == 1 else second
    if first not in tables or second not in tables or first == second:
        return None
    return (first, second) if tables[first][2] == 4 and tables[first][:2] == tables[second][:2] else None


def count_classes(
    outputs: Outputs,
    size: tuple[int, int],
    *,
    background: int | None = None,
    boxes: str | None = None,
    scores: str | None = None,
    **_: object,
) -> int:
    """Number of classes of such outputs, without the background."""
    return int(_find(outputs, boxes, scores)[1].shape[2]) - (background is not None)


FAMILY = Family(
    Preprocess((300, 300), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)), iou=0.45, count_classes=count_classes
)
