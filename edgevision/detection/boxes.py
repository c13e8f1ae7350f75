"""Boxes ``[N, 4]`` xyxy: left, top, right, bottom, in any one unit."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = "npt.NDArray[Any]"
Float32Array: TypeAlias = "npt.NDArray[np.float32]"


def iou_matrix(first: Array, second: Array) -> Array:
    """Intersection over union of every box ``[N, 4]`` with every other ``[M, 4]``: ``[N, M]``, 0..1.

    Boxes without area overlap nothing, not even themselves.
    """
    shared, union = shared_and_union(first, second)
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def shared_and_union(first: Array, second: Array) -> tuple[Array, Array]:
    """Areas of the intersection and of the union of every box ``[N, 4]`` with every other ``[M, 4]``: ``[N, M]``."""
    # column by column: four times as quick as pairs of corners behind each other
    left, top, right, bottom = (first[:, side, None] for side in range(4))
    other_left, other_top, other_right, other_bottom = (second[None, :, side] for side in range(4))
    width = np.minimum(right, other_right) - np.maximum(left, other_left)
    height = np.minimum(bottom, other_bottom) - np.maximum(top, other_top)
    shared = np.maximum(width, 0, out=width) * np.maximum(height, 0, out=height)
    return shared, areas(first)[:, None] + areas(second)[None, :] - shared


def greedy_pairs(overlap: Array, least: float) -> list[tuple[int, int]]:
    """Row after row of ``overlap`` ``[N, M]`` takes the free column it overlaps most, from ``least`` on."""
    free, pairs = overlap.copy(), []
    for row in range(len(free) if free.shape[1] else 0):
        best = int(free[row].argmax())
        if free[row, best] >= least:
            pairs.append((row, best))
            free[:, best] = -1.0
    return pairs


def areas(boxes: Array) -> Array:
    """Areas ``[N]`` of boxes ``[N, 4]``; 0 where right or bottom lies before left or top."""
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    return np.asarray(sides[:, 0] * sides[:, 1])


def cxcywh_to_xyxy(boxes: Array) -> Array:
    """Centre x, y, width and height ``[N, 4]`` as left, top, right, bottom."""
    half = boxes[:, 2:] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)


def xyxy_to_cxcywh(boxes: Array) -> Array:
    """Left, top, right, bottom ``[N, 4]`` as centre x, y, width and height."""
    return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)


def clip_boxes(boxes: Array, width: float, height: float) -> Array:
    """Boxes ``[N, 4]`` cut at the borders of a picture; those outside it keep no area."""
    clipped = np.empty_like(boxes)
    np.clip(boxes[:, 0::2], 0, width, out=clipped[:, 0::2])
    np.clip(boxes[:, 1::2], 0, height, out=clipped[:, 1::2])
    return clipped
