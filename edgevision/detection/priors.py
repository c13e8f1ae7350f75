"""Priors of an anchor-based detector from the boxes of a data set: k-means with 1 − IoU as the distance.

Redmon and Farhadi 2017, *YOLO9000*, arXiv 1612.08242, section 2 (dimension clusters); YOLOv3, arXiv 1804.02767,
section 2.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgevision.data import open_dataset
from edgevision.data.base import Dataset
from edgevision.detection.boxes import Array
from edgevision.detection.decoders.yolov3 import ANCHORS
from edgevision.errors import DataError, UsageError
from edgevision.images import to_image
from edgevision.progress import track

Sides: TypeAlias = "npt.NDArray[np.float64]"

# YOLOv3, section 2.3: width and height in pixels of an input of 416 × 416, found on COCO
COCO_PRIORS = tuple(prior for level in ANCHORS for prior in level)

# seeds are compared on so many boxes at most; the best goes on with all
SAMPLE = 20_000
RESTARTS = 8
ITERATIONS = 300


@dataclass(frozen=True)
class Priors:
    """What `find_priors` found.

    Attributes:
        sides: float64 ``[K, 2]``, width and height in input pixels, smallest area first.
        shares: float64 ``[K]``: of the boxes, how many are nearest to each.
        mean_iou: of every box with its nearest prior, centre on centre.
        coco_mean_iou: the same with the nine of the YOLOv3 paper, scaled to this input.
        boxes: how many boxes there were.
        size: input height and width in pixels.
    """

    sides: Sides
    shares: Sides
    mean_iou: float
    coco_mean_iou: float
    boxes: int
    size: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them; ``priors`` is what ``anchors`` of YOLOv3 takes."""
        return {
            "priors": [[round(float(side), 1) for side in prior] for prior in self.sides],
            "shares": [float(share) for share in self.shares],
            "mean_iou": self.mean_iou,
            "coco_mean_iou": self.coco_mean_iou,
            "boxes": self.boxes,
            "size": list(self.size),
        }


def find_priors(
    data: str | Path | Dataset,
    *,
    count: int = 9,
    size: tuple[int, int] = (416, 416),
    split: str | None = None,
    images: str | Path | None = None,
    seed: int = 0,
) -> Priors:
    """Priors of a data set as a detector sees it: pictures letterboxed into its input.

    Args:
        data: see `edgevision.data.open_dataset`; pictures are opened for their sizes alone.
        count: how many.
        size: input height and width, in pixels.
        split: of the data set.
        images: folder of the pictures of a COCO file.
        seed: of the first guesses; the same seed gives the same priors.

    Raises:
        UsageError: ``count`` or ``size`` out of range.
        DataError: the data set has no boxes, or fewer different ones than ``count``.
    """
    dataset = open_dataset(data, split=split, images=images)
    sides = box_sides(dataset, size)
    if not len(sides):
        raise DataError(f"{dataset.name}: no boxes to find priors of; detectors learn from coco: or voc: data")
    centers = cluster(sides, count, seed=seed)
    iou = shape_iou(sides, centers)
    nearest = iou.argmax(axis=1)
    scale = min(size) / 416
    return Priors(
        centers,
        np.bincount(nearest, minlength=count) / len(sides),
        float(iou.max(axis=1).mean()),
        float(shape_iou(sides, np.asarray(COCO_PRIORS) * scale).max(axis=1).mean()),
        len(sides),
        size,
    )


def box_sides(dataset: Dataset, size: tuple[int, int]) -> Sides:
    """Width and height of every box ``[N, 2]`` in pixels of an input of ``size`` that pictures are letterboxed into."""
    if len(size) != 2 or min(size) < 1:
        raise UsageError(f"size is height and width in pixels, 1 or more; got {size}")
    found = [np.empty((0, 2))]
    for sample in track((dataset[index] for index in range(len(dataset))), "read box sizes", len(dataset)):
        if sample.boxes is None or not len(sample.boxes.xyxy):
            continue
        width, height = picture_size(sample.image)
        boxes = sample.boxes.xyxy.astype(np.float64)
        found.append((boxes[:, 2:] - boxes[:, :2]) * min(size[0] / height, size[1] / width))
    sides = np.concatenate(found)
    return np.asarray(sides[(sides > 0).all(axis=1)])


def picture_size(image: Any) -> tuple[int, int]:
    """Width and height of a sample's picture as it is shown; a file's is read from its header."""
    if not isinstance(image, (str, Path)):
        return to_image(image).size
    try:
        with Image.open(image) as opened:
            width, height = opened.size
            turned = opened.getexif().get(0x0112, 1) >= 5  # EXIF orientation: lies on its side
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{image}: not a readable picture: {error}") from error
    return (height, width) if turned else (width, height)


def shape_iou(sides: Array, centers: Array) -> Sides:
    """IoU of boxes ``[N, 2]`` with boxes ``[K, 2]`` when their centres coincide: ``[N, K]``."""
    shared = np.minimum(sides[:, None, 0], centers[None, :, 0]) * np.minimum(sides[:, None, 1], centers[None, :, 1])
    union = sides.prod(axis=1)[:, None] + centers.prod(axis=1)[None, :] - shared
    return np.asarray(shared / union, np.float64)


def cluster(sides: Array, count: int, *, seed: int = 0) -> Sides:
    """k-means over width and height ``[N, 2]`` with the distance 1 − IoU; centres are the clusters' means.

    The first centres are drawn far from each other (k-means++, Arthur and Vassilvitskii 2007), `RESTARTS` times; the
    draw with the largest mean IoU is kept.

    Args:
        sides: all above 0.
        count: how many centres.
        seed: of the draws.

    Returns:
        ``[count, 2]``, smallest area first.

    Raises:
        UsageError: ``count`` is no whole number of at least 1.
        DataError: fewer different boxes than ``count``.
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise UsageError(f"count must be a whole number of at least 1; got {count!r}")
    if seed < 0:
        raise UsageError(f"seed must be 0 or more; got {seed}")
    sides = np.asarray(sides, np.float64)
    different = len(np.unique(sides, axis=0))
    if different < count:
        raise DataError(f"{count} priors were asked for; the data has {different} different box sizes")
    rng = np.random.default_rng(seed)
    few = sides if len(sides) <= SAMPLE else sides[np.sort(rng.choice(len(sides), SAMPLE, replace=False))]
    draws = [_converge(few, _scatter(few, count, rng)) for _ in range(RESTARTS)]
    best = max(draws, key=lambda centers: float(shape_iou(few, centers).max(axis=1).mean()))
    centers = best if few is sides else _converge(sides, best)
    return np.asarray(centers[np.argsort(centers.prod(axis=1), kind="stable")])


def _scatter(sides: Sides, count: int, rng: np.random.Generator) -> Sides:
    centers = sides[[int(rng.integers(len(sides)))]]
    while len(centers) < count:
        distance = np.maximum(1 - shape_iou(sides, centers).max(axis=1), 0)
        # a sample may hold fewer different boxes than the data
        chances = distance**2 / np.sum(distance**2) if distance.any() else None
        centers = np.concatenate([centers, sides[[int(rng.choice(len(sides), p=chances))]]])
    return centers


def _converge(sides: Sides, centers: Sides) -> Sides:
    nearest = np.full(len(sides), -1)
    for _ in range(ITERATIONS):
        iou = shape_iou(sides, centers)
        before, nearest = nearest, iou.argmax(axis=1)
        if np.array_equal(before, nearest):
            break
        sizes = np.bincount(nearest, minlength=len(centers))
        sums = np.stack([np.bincount(nearest, sides[:, axis], len(centers)) for axis in (0, 1)], axis=1)
        centers = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], centers)
        for empty in np.flatnonzero(sizes == 0):
            # the box that is worst served begins a cluster of its own
            centers[empty] = sides[iou.max(axis=1).argmin()]
    return centers
