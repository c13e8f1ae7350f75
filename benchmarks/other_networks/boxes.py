"""Boxes ``[N, 4]`` left, top, right, bottom in any one unit: overlap, suppression, matching. numpy alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = "npt.NDArray[Any]"


@dataclass(frozen=True)
class Detections:
    """What a detector found in one picture, best first.

    Attributes:
        boxes: ``[N, 4]`` left, top, right, bottom.
        scores: ``[N]``, 0..1, falling.
        labels: ``[N]`` class index.
    """

    boxes: Array
    scores: Array
    labels: Array

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> Detections:
        """Those with a score above this one."""
        kept = self.scores > score
        return Detections(self.boxes[kept], self.scores[kept], self.labels[kept])


def iou(first: Array, second: Array) -> Array:
    """Intersection over union of every box ``[N, 4]`` with every other ``[M, 4]``: ``[N, M]``, 0..1."""
    left_top = np.maximum(first[:, None, :2], second[None, :, :2])
    right_bottom = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.clip(right_bottom - left_top, 0, None).prod(axis=2)
    union = _areas(first)[:, None] + _areas(second)[None, :] - shared
    # two boxes without area share nothing
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0))


def _areas(boxes: Array) -> Array:
    return np.asarray(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1))


def suppress(found: Detections, threshold: float) -> Detections:
    """Non-maximum suppression within each class: whoever overlaps a better one by more than ``threshold`` goes."""
    order = np.argsort(-found.scores, kind="stable")
    boxes, labels = found.boxes[order], found.labels[order]
    rivals = (iou(boxes, boxes) > threshold) & (labels[:, None] == labels[None, :])
    alive = np.ones(len(order), bool)
    for index in range(len(order)):
        if alive[index]:
            alive[index + 1 :] &= ~rivals[index, index + 1 :]
    return Detections(boxes[alive], found.scores[order][alive], labels[alive])


def matched(first: Detections, second: Detections, threshold: float = 0.5) -> int:
    """How many of ``first`` have a partner of their own in ``second``: same class, IoU at least ``threshold``."""
    overlap = np.where(first.labels[:, None] == second.labels[None, :], iou(first.boxes, second.boxes), 0.0)
    pairs = 0
    for row in overlap:  # best first, as detections are sorted
        if len(row) and row.max() >= threshold:
            pairs += 1
            overlap[:, row.argmax()] = 0.0
    return pairs


def agreement(first: list[Detections], second: list[Detections]) -> float:
    """F1 of two detectors' findings over all pictures, each judged by the other; 1 where neither found anything."""
    pairs = sum(matched(a, b) for a, b in zip(first, second, strict=True))
    total = sum(map(len, first)) + sum(map(len, second))
    return 2 * pairs / total if total else 1.0
