"""How far two detectors find the same things."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from edgevision.detection import Detections
from edgevision.detection.boxes import iou_matrix

Array: TypeAlias = "npt.NDArray[Any]"


def matched(first: Detections, second: Detections, threshold: float = 0.5) -> int:
    """How many of ``first`` have a partner of their own in ``second``: same class, IoU at least ``threshold``."""
    alike = first.labels[:, None] == second.labels[None, :]
    overlap = np.where(alike, iou_matrix(first.boxes, second.boxes), np.float32(0))
    pairs = 0
    for row in overlap:  # best first, as detections are sorted
        if len(row) and row.max() >= threshold:
            pairs += 1
            overlap[:, row.argmax()] = 0.0
    return pairs


def agreement(first: Sequence[Detections], second: Sequence[Detections]) -> float:
    """F1 of two detectors' findings over all pictures, each judged by the other; 1 where neither found anything."""
    pairs = sum(matched(a, b) for a, b in zip(first, second, strict=True))
    total = sum(map(len, first)) + sum(map(len, second))
    return 2 * pairs / total if total else 1.0
