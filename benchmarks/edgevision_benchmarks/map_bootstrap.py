"""How sure a mean average precision is: the pictures it was measured on are drawn anew, and it is computed again.

The bootstrap over pictures that PASCAL VOC's results were judged by (M. Everingham et al., Assessing the significance
of performance differences on the PASCAL VOC challenges via bootstrapping, 2013; The PASCAL Visual Object Classes
challenge: a retrospective, IJCV 111, 2015), here of COCO's mAP. What is matched with what within a picture does not
depend on the others, so pictures are matched once; a draw is then a weight for each of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgevision.detection.boxes import areas, shared_and_union
from edgevision.detection.evaluation import MAX_DETECTIONS, RECALL_LEVELS, FoundBoxes, TrueBoxes

# a standard error seldom takes more (B. Efron and R. Tibshirani, An Introduction to the Bootstrap, section 6.4)
RESAMPLES = 200

# COCO's: IoU 0.50:0.05:0.95, the last bits of an exact overlap forgiven
_THRESHOLDS = np.minimum(np.linspace(0.5, 0.95, 10), 1 - 1e-10)
_LEVELS = np.linspace(0.0, 1.0, RECALL_LEVELS)

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ClassMatches:
    """What was found of one class in all pictures, the surest first.

    Attributes:
        picture: int64 ``[D]``: which picture each detection is of.
        hit: bool ``[10, D]``: whether it found an object, at each IoU.
        counted: bool ``[10, D]``: False for what lies in a crowd and counts neither for nor against.
        objects: int64 ``[N]``: objects of the class in each picture.
    """

    picture: npt.NDArray[np.int64]
    hit: npt.NDArray[np.bool_]
    counted: npt.NDArray[np.bool_]
    objects: npt.NDArray[np.int64]

    def average_precision(self, weights: npt.NDArray[np.int64]) -> float | None:
        """COCO's, over IoU 0.50:0.05:0.95, with every picture taken ``weights`` ``[N]`` times; None without objects.

        Precision falls at whatever is no hit, so that its monotone envelope is told by the hits alone.
        """
        objects = int((weights * self.objects).sum())
        if not objects:
            return None
        taken = weights[self.picture]
        plain = np.cumsum(taken)
        total = 0.0
        for hit, counted in zip(self.hit, self.counted, strict=True):
            (places,) = hit.nonzero()
            found = np.cumsum(taken[places])
            if not len(places) or not found[-1]:
                continue
            judged = plain if counted.all() else np.cumsum(taken * counted)
            precision = found / np.maximum(judged[places], 1)
            envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
            total += float(envelope[np.searchsorted(found / objects, _LEVELS)].sum())
        return total / (len(_THRESHOLDS) * RECALL_LEVELS)


def matched_classes(
    truth: Sequence[TrueBoxes],
    found: Sequence[FoundBoxes],
    num_classes: int,
    *,
    crowds: Sequence[TrueBoxes | None] | None = None,
    max_detections: int = MAX_DETECTIONS,
) -> list[ClassMatches]:
    """Match what was found with what is there, as COCO does: the surest first, each with the free object it overlaps
    most.

    Arguments are those of `edgevision.detection.evaluation.mean_average_precision`, which checks them.
    """
    regions = [None] * len(truth) if crowds is None else list(crowds)
    per_picture = list(zip(truth, found, regions, strict=True))
    return [_matched_class(per_picture, label, max_detections) for label in range(num_classes)]


def _matched_class(
    pictures: Sequence[tuple[TrueBoxes, FoundBoxes, TrueBoxes | None]], label: int, most: int
) -> ClassMatches:
    scores, hits, counted, counts = [np.zeros(0)], [_nothing(0)], [_nothing(0)], []
    for truth, found, crowd in pictures:
        objects = _of_class(truth.xyxy, truth.labels, label)
        boxes, sure = _surest(found, label, most)
        hit = _hits(boxes, objects)
        ignored = _in_crowds(boxes, np.zeros((0, 4)) if crowd is None else _of_class(crowd.xyxy, crowd.labels, label))
        scores.append(sure)
        hits.append(hit)
        counted.append(hit | ~ignored)
        counts.append(len(objects))
    every = np.concatenate(scores)
    order = np.argsort(-every, kind="stable")
    picture = np.repeat(np.arange(len(pictures)), [len(each) for each in scores[1:]])
    return ClassMatches(
        picture[order],
        np.concatenate(hits, axis=1)[:, order],
        np.concatenate(counted, axis=1)[:, order],
        np.asarray(counts, np.int64),
    )


def _of_class(xyxy: npt.NDArray[np.floating], labels: npt.NDArray[np.integer], label: int) -> Array:
    """Boxes ``[N, 4]`` of one class; those without area are none, as in the evaluation."""
    boxes = np.asarray(xyxy, np.float64).reshape(-1, 4)[np.asarray(labels).reshape(-1) == label]
    return np.asarray(boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)])


def _surest(found: FoundBoxes, label: int, most: int) -> tuple[Array, Array]:
    boxes, scores = np.asarray(found.boxes, np.float64).reshape(-1, 4), np.asarray(found.scores, np.float64).reshape(-1)
    chosen = (np.asarray(found.labels).reshape(-1) == label) & np.isfinite(boxes).all(axis=1) & np.isfinite(scores)
    (places,) = chosen.nonzero()
    places = places[np.argsort(-scores[places], kind="stable")[:most]]
    return boxes[places], scores[places]


def _hits(boxes: Array, objects: Array) -> npt.NDArray[np.bool_]:
    """Which boxes ``[D, 4]``, the surest first, find an object ``[G, 4]``, at each IoU: ``[10, D]``."""
    hit = _nothing(len(boxes))
    if not len(boxes) or not len(objects):
        return hit
    shared, union = shared_and_union(boxes, objects)
    overlap = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    free = np.ones((len(_THRESHOLDS), len(objects)), bool)
    rows = np.arange(len(_THRESHOLDS))
    for index in (overlap.max(axis=1) >= _THRESHOLDS[0]).nonzero()[0]:
        possible = np.where(free & (overlap[index] >= _THRESHOLDS[:, None]), overlap[index], -1.0)
        # of equal overlaps the last object is taken
        best = len(objects) - 1 - possible[:, ::-1].argmax(axis=1)
        hit[:, index] = possible[rows, best] >= 0
        free[rows[hit[:, index]], best[hit[:, index]]] = False
    return hit


def _in_crowds(boxes: Array, crowds: Array) -> npt.NDArray[np.bool_]:
    """Which boxes lie in a crowd region by as much of their own area as the IoU asks for: ``[10, D]``."""
    if not len(boxes) or not len(crowds):
        return _nothing(len(boxes))
    own = areas(boxes)[:, None]
    shared, _ = shared_and_union(boxes, crowds)
    inside = np.divide(shared, own, out=np.zeros_like(shared), where=own > 0).max(axis=1)
    return np.asarray(inside >= _THRESHOLDS[:, None])


def _nothing(count: int) -> npt.NDArray[np.bool_]:
    return np.zeros((len(_THRESHOLDS), count), bool)


def mean_of_classes(matches: Sequence[ClassMatches], weights: npt.NDArray[np.int64]) -> float | None:
    """mAP with every picture taken ``weights`` ``[N]`` times: the mean of the classes that have an object then."""
    found = [each.average_precision(weights) for each in matches]
    told = [value for value in found if value is not None]
    return float(np.mean(told)) if told else None


def map_resamples(matches: Sequence[ClassMatches], resamples: int = RESAMPLES) -> tuple[float, ...]:
    """mAP of so many draws of the pictures, of six digits; none where there is no object or but one picture.

    The draws are the same for all networks: of the same pictures, differences can be taken draw by draw.
    """
    objects = np.sum([each.objects for each in matches], axis=0) if matches else np.zeros(0, np.int64)
    if len(objects) < 2 or not objects.any():
        return ()
    found = (mean_of_classes(matches, weights) for weights in _draws(objects, resamples))
    return tuple(float(f"{value:.6f}") for value in found if value is not None)


def _draws(objects: npt.NDArray[np.int64], resamples: int) -> Iterator[npt.NDArray[np.int64]]:
    """How often each picture ``[N]`` is drawn; draws that hold no object at all are drawn again."""
    n, drawn = len(objects), 0
    # a bit generator's own stream stays as it is with every version of NumPy (NEP 19)
    stream = np.random.PCG64(n)
    while drawn < resamples:
        weights = np.bincount((stream.random_raw(n) % np.uint64(n)).astype(np.int64), minlength=n)
        if (weights * objects).any():
            drawn += 1
            yield weights
