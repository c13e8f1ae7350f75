"""Mean average precision as COCO defines it (Lin et al., *Microsoft COCO*, ECCV 2014; cocodataset.org, "Evaluation").

One code for torch in training and for every engine's bundle: it takes boxes, and knows nothing of networks. The figures
are faster-coco-eval's, which is imported where they are computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from edgevision.dependencies import require
from edgevision.errors import DataError, UsageError

if TYPE_CHECKING:
    from edgevision.detection.postprocess import Postprocess

# COCO's: detections judged of each picture and class
MAX_DETECTIONS = 100
# As COCO's results are made: nearly every box is handed in, with every class it may be, so that the curve of precision
# over recall goes to its end.
CONFIDENCE = 0.001
NMS_IOU = 0.65
# recall levels 0, 0.01, …, 1 at which precision is read
RECALL_LEVELS = 101


def evaluation_postprocess(postprocess: Postprocess) -> Postprocess:
    """A detector's own decoding with the thresholds that mAP is measured with, everywhere the same.

    Confidence 0.001, every class of a box above it, non-maximum suppression at IoU 0.65 within each class, and the
    best 100 boxes of a picture. A graph that suppresses by itself keeps its own thresholds, and the mAP is that of what
    it shows.
    """
    return postprocess.adjusted(
        confidence=CONFIDENCE,
        iou=NMS_IOU,
        multi_label=True,
        class_agnostic=False,
        max_detections=MAX_DETECTIONS,
    )


class TrueBoxes(Protocol):
    """Objects of one picture, as `edgevision.data.base.Boxes` has them."""

    @property
    def xyxy(self) -> npt.NDArray[Any]:
        """``[N, 4]`` left, top, right, bottom, in pixels of the original picture."""
        ...

    @property
    def labels(self) -> npt.NDArray[Any]:
        """``[N]`` class index."""
        ...


class FoundBoxes(Protocol):
    """What was found in one picture, as `edgevision.detection.detections.Detections` has it."""

    @property
    def boxes(self) -> npt.NDArray[Any]:
        """``[N, 4]`` left, top, right, bottom, in pixels of the original picture."""
        ...

    @property
    def scores(self) -> npt.NDArray[Any]:
        """``[N]``, greater is surer."""
        ...

    @property
    def labels(self) -> npt.NDArray[Any]:
        """``[N]`` class index."""
        ...


@dataclass(frozen=True)
class ClassMetrics:
    """One class. Shares 0..1; None where the pictures hold no object of it.

    Attributes:
        name: its name, or its index where names are unknown.
        map: average precision over IoU 0.50:0.05:0.95.
        map50: average precision at IoU 0.50.
        recall: greatest recall over IoU 0.50:0.05:0.95 with at most 100 detections in a picture.
        objects: how many there are, crowd regions left out.
    """

    name: str
    map: float | None
    map50: float | None
    recall: float | None
    objects: int


@dataclass(frozen=True)
class DetectionMetrics:
    """Mean average precision over classes. Shares 0..1; None where no object of that kind is in the pictures.

    Attributes:
        map: over IoU 0.50:0.05:0.95, COCO's primary figure.
        map50: at IoU 0.50, PASCAL VOC's.
        map75: at IoU 0.75.
        map_small: ``map`` of objects up to 32² pixels of the original picture.
        map_medium: of objects from 32² to 96² pixels.
        map_large: of objects of 96² pixels or more.
        recall: mean over classes of the greatest recall, IoU 0.50:0.05:0.95 (COCO's AR at 100).
        n: pictures.
        objects: objects in them, crowd regions left out.
        not_finite: detections left out because a coordinate or the score is NaN or infinite.
        per_class: every class, by index.
        precision50: float32 ``[num_classes, 101]``: precision at IoU 0.50 over the recalls 0, 0.01, …, 1, made
            monotone as COCO does; NaN for classes without an object. What a PR curve draws.
    """

    map: float | None
    map50: float | None
    map75: float | None
    map_small: float | None
    map_medium: float | None
    map_large: float | None
    recall: float | None
    n: int
    objects: int
    not_finite: int = 0
    per_class: tuple[ClassMetrics, ...] = ()
    precision50: npt.NDArray[np.float32] = field(
        default_factory=lambda: np.zeros((0, RECALL_LEVELS), np.float32), compare=False, repr=False
    )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them; classes without an object are left out, and the curves."""
        return {
            "map": self.map,
            "map50": self.map50,
            "map75": self.map75,
            "map_small": self.map_small,
            "map_medium": self.map_medium,
            "map_large": self.map_large,
            "recall": self.recall,
            "n": self.n,
            "objects": self.objects,
            "not_finite": self.not_finite,
            "per_class": {
                found.name: {
                    "map": found.map,
                    "map50": found.map50,
                    "recall": found.recall,
                    "objects": found.objects,
                }
                for found in self.per_class
                if found.objects
            },
        }


def mean_average_precision(
    ground_truth: Sequence[TrueBoxes],
    detections: Sequence[FoundBoxes],
    num_classes: int,
    *,
    classes: Sequence[str] = (),
    crowds: Sequence[TrueBoxes | None] | None = None,
    max_detections: int = MAX_DETECTIONS,
) -> DetectionMetrics:
    """Judge what was found in pictures against what is in them.

    Detections are matched with objects of their class, surest first, at each IoU threshold; precision is read at
    101 recall levels and averaged over thresholds and over the classes that have objects. An object's size is the
    area of its box. Objects without area, which nothing can overlap, are left out.

    Args:
        ground_truth: objects of each picture.
        detections: what was found in each, in the same order of pictures.
        num_classes: number of classes; labels are 0 .. num_classes − 1.
        classes: their names, for ``per_class``.
        crowds: regions of each picture that hold many objects of a class (COCO's ``iscrowd``): detections that lie
            in one count neither for nor against.
        max_detections: so many of each picture and class are judged, the surest.

    Raises:
        UsageError: the sequences differ in length, or ``num_classes`` is below 1.
        DataError: a label outside the classes; names the picture's position.
        MissingDependencyError: faster-coco-eval is not installed.
    """
    if num_classes < 1 or max_detections < 1:
        raise UsageError(f"num_classes and max_detections must be 1 or more; got {num_classes} and {max_detections}")
    if len(ground_truth) != len(detections) or (crowds is not None and len(crowds) != len(ground_truth)):
        raise UsageError(
            f"every picture needs its objects and its detections: got {len(ground_truth)} pictures with objects and "
            f"{len(detections)} with detections" + ("" if crowds is None else f", {len(crowds)} with crowd regions")
        )
    names = [str(classes[index]) if index < len(classes) else str(index) for index in range(num_classes)]
    truth = _truth_records(ground_truth, crowds, num_classes)
    found, not_finite = _found_records(detections, num_classes)
    precision, recall = _accumulated(len(ground_truth), names, truth, found, max_detections)
    counts = np.bincount([record["category_id"] for record in truth if not record["iscrowd"]], minlength=num_classes)
    # precision: [IoU thresholds, recall levels, classes, sizes]; −1 where there is no object
    return DetectionMetrics(
        map=_mean(precision[:, :, :, 0]),
        map50=_mean(precision[0, :, :, 0]),
        map75=_mean(precision[5, :, :, 0]),
        map_small=_mean(precision[:, :, :, 1]),
        map_medium=_mean(precision[:, :, :, 2]),
        map_large=_mean(precision[:, :, :, 3]),
        recall=_mean(recall[:, :, 0]),
        n=len(ground_truth),
        objects=int(counts.sum()),
        not_finite=not_finite,
        per_class=tuple(
            ClassMetrics(
                name,
                _mean(precision[:, :, index, 0]),
                _mean(precision[0, :, index, 0]),
                _mean(recall[:, index, 0]),
                int(counts[index]),
            )
            for index, name in enumerate(names)
        ),
        precision50=_curves(precision[0, :, :, 0]),
    )


def confusion_matrix(
    ground_truth: Sequence[TrueBoxes],
    detections: Sequence[FoundBoxes],
    num_classes: int,
    *,
    confidence: float = 0.25,
    iou: float = 0.5,
) -> npt.NDArray[np.int64]:
    """Which class was taken for which: int64 ``[num_classes + 1, num_classes + 1]``, rows true, columns found.

    The last column counts objects that were missed, the last row detections where no object is. Every detection of at
    least ``confidence`` takes the free object it overlaps most, surest first, of whatever class, from ``iou`` on.

    Raises:
        UsageError: the sequences differ in length.
    """
    from edgevision.detection.boxes import greedy_pairs, iou_matrix

    if len(ground_truth) != len(detections):
        raise UsageError(f"got objects of {len(ground_truth)} pictures and detections of {len(detections)}")
    matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    for truth, found in zip(ground_truth, detections, strict=True):
        order = np.argsort(-np.asarray(found.scores), kind="stable")
        order = order[np.asarray(found.scores)[order] >= confidence]
        xyxy = np.asarray(truth.xyxy, np.float32).reshape(-1, 4)
        overlap = iou_matrix(np.asarray(found.boxes, np.float32).reshape(-1, 4)[order], xyxy)
        taken = dict(greedy_pairs(overlap, iou))
        for row, label in enumerate(np.asarray(found.labels)[order].tolist()):
            matrix[int(truth.labels[taken[row]]) if row in taken else num_classes, label] += 1
        for index, label in enumerate(np.asarray(truth.labels).tolist()):
            matrix[label, num_classes] += index not in taken.values()
    return matrix


def _truth_records(
    ground_truth: Sequence[TrueBoxes], crowds: Sequence[TrueBoxes | None] | None, num_classes: int
) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for picture, truth in enumerate(ground_truth):
        crowd = None if crowds is None else crowds[picture]
        for boxes, is_crowd in ((truth, 0), (crowd, 1)):
            if boxes is not None:
                records += _records(picture, boxes.xyxy, boxes.labels, num_classes, {"iscrowd": is_crowd})
    # the evaluator takes the id 0 for "matched with nothing"
    return [{**record, "id": number} for number, record in enumerate(records, 1)]


def _records(
    picture: int, xyxy: npt.NDArray[Any], labels: npt.NDArray[Any], num_classes: int, also: Mapping[str, Any]
) -> list[dict[str, Any]]:
    # float64: areas of large boxes in whole pixels stay exact, which decides small, medium or large
    corners = np.asarray(xyxy, np.float64).reshape(-1, 4)
    classes = np.asarray(labels).reshape(-1)
    if len(classes) != len(corners):
        raise DataError(f"picture {picture}: {len(corners)} boxes and {len(classes)} labels")
    if len(classes) and (classes.min() < 0 or classes.max() >= num_classes):
        raise DataError(
            f"picture {picture}: label {classes.min() if classes.min() < 0 else classes.max()} lies outside the "
            f"{num_classes} classes"
        )
    sizes = corners[:, 2:] - corners[:, :2]
    return [
        {
            "image_id": picture + 1,
            "category_id": int(label),
            "bbox": [left, top, width, height],
            "area": width * height,
            **also,
        }
        for (left, top, _, _), (width, height), label in zip(
            corners.tolist(), sizes.tolist(), classes.tolist(), strict=True
        )
        if width > 0 and height > 0
    ]


def _found_records(detections: Sequence[FoundBoxes], num_classes: int) -> tuple[list[dict[str, Any]], int]:
    records: list[dict[str, Any]] = []
    not_finite = 0
    for picture, found in enumerate(detections):
        boxes = np.asarray(found.boxes, np.float64).reshape(-1, 4)
        scores = np.asarray(found.scores, np.float64).reshape(-1)
        finite = np.isfinite(boxes).all(axis=1) & np.isfinite(scores)
        not_finite += int((~finite).sum())
        # a box without area finds nothing, yet counts against the detector: give it some outside every picture
        flat = (boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1])
        boxes = np.where(flat.reshape(-1, 1), np.array([-2.0, -2.0, -1.0, -1.0]), boxes)
        made = _records(picture, boxes[finite], np.asarray(found.labels).reshape(-1)[finite], num_classes, {})
        for record, score in zip(made, scores[finite].tolist(), strict=True):
            record["score"] = score
        records += made
    return [{**record, "id": number, "iscrowd": 0} for number, record in enumerate(records, 1)], not_finite


def _accumulated(
    pictures: int,
    names: Sequence[str],
    truth: list[dict[str, Any]],
    found: list[dict[str, Any]],
    max_detections: int,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Precision ``[10, 101, num_classes, 4]`` and recall ``[10, num_classes, 4]``; −1 where there is no object."""
    coco = require("faster_coco_eval", purpose="measure mAP", extra="detection")
    document = {
        "images": [{"id": number} for number in range(1, pictures + 1)],
        "categories": [{"id": index, "name": name} for index, name in enumerate(names)],
    }
    judge = coco.COCOeval_faster(
        coco.COCO({**document, "annotations": truth}, print_function=_silent),
        coco.COCO({**document, "annotations": found}, print_function=_silent),
        iouType="bbox",
        print_function=_silent,
    )
    judge.params.maxDets = [max_detections]
    if not truth or not found:
        # nothing to match: every class with an object has a precision of 0 at every recall
        return _of_no_match(truth, len(names), [tuple(limits) for limits in judge.params.areaRng])
    judge.evaluate()
    judge.accumulate()
    precision, recall = np.asarray(judge.eval["precision"]), np.asarray(judge.eval["recall"])
    return precision[..., 0], recall[..., 0]


def _of_no_match(
    truth: list[dict[str, Any]], num_classes: int, areas: Sequence[tuple[float, float]]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    precision = np.full((10, RECALL_LEVELS, num_classes, len(areas)), -1.0)
    recall = np.full((10, num_classes, len(areas)), -1.0)
    for record in truth:
        for index, (least, most) in enumerate(areas):
            if not record["iscrowd"] and least <= record["area"] <= most:
                precision[:, :, record["category_id"], index] = 0.0
                recall[:, record["category_id"], index] = 0.0
    return precision, recall


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    known = values.ravel()[values.ravel() > -1]
    return float(known.mean()) if known.size else None


def _curves(precision: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    curves = precision.T.astype(np.float32)
    curves[curves < 0] = np.nan
    return curves


def _silent(*_: object, **__: object) -> None:
    """The evaluator prints its table; ours is another."""
