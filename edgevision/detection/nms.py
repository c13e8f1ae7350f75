"""Greedy non-maximum suppression, over all classes at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgevision.detection.boxes import Array, shared_and_union
from edgevision.errors import UsageError

# boxes that are compared with each other at once: larger tables leave the cache, and most are stopped early
_BLOCK = 256


def non_maximum_suppression(
    boxes: Array,
    scores: Array,
    labels: Array,
    *,
    iou: float,
    class_agnostic: bool = False,
    max_detections: int = 300,
) -> npt.NDArray[np.intp]:
    """Keep the best box of each object: whoever overlaps a better one of its class by more than ``iou`` goes.

    Boxes that went suppress nobody. Of equal scores the earlier one counts as better. Classes are told apart by their
    labels rather than by shifting each class's boxes out of the others' way, which costs float32 its precision.

    Args:
        boxes: float ``[N, 4]`` xyxy, in any unit.
        scores: ``[N]``.
        labels: ``[N]`` class index.
        iou: intersection over union, 0..1.
        class_agnostic: whether boxes suppress those of other classes too.
        max_detections: at most so many are kept.

    Returns:
        indices ``[K]`` of those kept, best first.

    Raises:
        UsageError: lengths that differ.
    """
    if boxes.shape != (len(scores), 4) or len(labels) != len(scores):
        raise UsageError(
            f"suppression needs as many boxes [N, 4] as scores and labels [N]; got {list(boxes.shape)}, "
            f"{list(np.shape(scores))} and {list(np.shape(labels))}"
        )
    order = np.argsort(-scores, kind="stable")
    kept = np.empty(0, np.intp)
    for start in range(0, len(order), _BLOCK):
        block = order[start : start + _BLOCK]
        if len(kept):
            against = _rivals(boxes, labels, kept, block, iou, class_agnostic)
            block = block[~against.any(axis=0)]
        alive = _greedy(_rivals(boxes, labels, block, block, iou, class_agnostic))
        kept = np.concatenate([kept, block[alive]])
        if len(kept) >= max_detections:
            break
    return kept[:max_detections]


def _rivals(
    boxes: Array, labels: Array, first: Array, second: Array, iou: float, class_agnostic: bool
) -> npt.NDArray[np.bool_]:
    """Which boxes ``[N]`` and ``[M]`` cannot both stay: ``[N, M]``."""
    shared, union = shared_and_union(boxes[first], boxes[second])
    rivals: npt.NDArray[np.bool_] = shared > union * np.asarray(iou, union.dtype)
    if not class_agnostic:
        rivals &= labels[first][:, None] == labels[second][None, :]
    return rivals


def _greedy(rivals: npt.NDArray[np.bool_]) -> list[int]:
    """Positions that stay, best first; each row as one integer of as many bits, which Python joins quickly."""
    packed = np.packbits(rivals, axis=1, bitorder="little")
    gone, alive = 0, []
    for index, row in enumerate(packed):
        if not gone >> index & 1:
            alive.append(index)
            gone |= int.from_bytes(row.tobytes(), "little")
    return alive
