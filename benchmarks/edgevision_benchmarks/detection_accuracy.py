"""mAP of a detector's session on annotated pictures, and how far its boxes agree with a reference session's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevision.data.base import Boxes, Dataset, Subset
from edgevision.data.datasets import crowd_regions
from edgevision.detection.compare import compare_detections
from edgevision.detection.detections import Detections
from edgevision.detection.evaluation import (
    CONFIDENCE,
    DetectionMetrics,
    evaluation_postprocess,
    mean_average_precision,
)
from edgevision.detection.postprocess import Postprocess
from edgevision.errors import DataError, UsageError
from edgevision.files import sha256_bytes
from edgevision.progress import Progress
from edgevision.runtime import Session
from edgevision_benchmarks.accuracy import Evaluation, class_indices, told_of
from edgevision_benchmarks.map_bootstrap import map_resamples, matched_classes

PlainDetections = list[list[Any]]


def evaluate_detector(session: Session, dataset: Subset, reference: Session | None, batch_size: int) -> Evaluation:
    """Judge a detector's session; see `edgevision_benchmarks.accuracy.evaluate`.

    Raises:
        UsageError: pictures without boxes, and no reference either.
        DataError: some pictures have boxes and others none are known of; an object's class is not the network's.
        MissingDependencyError: faster-coco-eval is not installed.
    """
    found: list[Detections] = []
    expected: list[Detections] = []
    not_finite = 0
    for own, other, bad in _runs(session, dataset, reference, batch_size):
        found += own
        expected += other or []
        not_finite += bad
    confidence = _confidence(session)
    detection, resamples = _judged(found, dataset, session)
    return Evaluation(
        n=len(found),
        agreement=box_agreement(found, expected, confidence) if reference is not None else None,
        not_finite=not_finite,
        detection=detection,
        resamples=resamples,
        pictures_sha256=sha256_bytes(b"".join(told_of(sample) for sample in dataset)),
        detections=tuple(found),
        confidence=confidence,
    )


def has_boxes(dataset: Dataset) -> bool:
    """Whether it is known what objects the pictures hold."""
    return len(dataset) > 0 and dataset[0].boxes is not None


def box_agreement(found: Sequence[Any], expected: Sequence[Any], confidence: float) -> float | None:
    """Share of both sides' boxes of at least ``confidence`` that have a partner on the other, 0..1.

    Partners are of one class and overlap by half (IoU); 1 where neither side has any box. None where the two
    sides answered other pictures.
    """
    if len(found) != len(expected):
        return None
    matched = compare_detections(expected, found, confidence=confidence).matched
    return 1.0 if matched is None else matched


def plain(detections: Sequence[Detections], confidence: float) -> list[PlainDetections]:
    """What `box_agreement` needs of each picture, as JSON takes it."""
    kept = [picture.above(confidence / 2) for picture in detections]
    return [[one.boxes.tolist(), one.scores.tolist(), one.labels.tolist()] for one in kept]


def answer_of(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation with what another bundle's agreement with it is told from, as JSON takes it."""
    answer: dict[str, Any] = {
        **evaluation.to_dict(),
        "accuracy": evaluation.accuracy,
        "metric": evaluation.metric,
        "accuracy_ci95": evaluation.accuracy_ci95,
        "accuracy_resamples": evaluation.resamples,
        "pictures_sha256": evaluation.pictures_sha256,
    }
    if evaluation.detections is not None and evaluation.confidence is not None:
        answer["detections"] = plain(evaluation.detections, evaluation.confidence)
        answer["confidence"] = evaluation.confidence
    return {**answer, "predictions": evaluation.predictions.tolist()}


def from_plain(pictures: Sequence[PlainDetections]) -> list[Detections]:
    """The inverse of `plain`."""
    return [
        Detections(
            np.asarray(boxes, np.float32).reshape(-1, 4), np.asarray(scores, np.float32), np.asarray(labels, np.int64)
        )
        for boxes, scores, labels in pictures
    ]


def _confidence(session: Session) -> float:
    """Score from which the bundle's user sees a box."""
    assert session.postprocess is not None
    return max(session.postprocess.confidence, 2 * CONFIDENCE)


def _judged(
    found: Sequence[Detections], dataset: Subset, session: Session
) -> tuple[DetectionMetrics | None, tuple[float, ...]]:
    """mAP, and what it is on draws of the pictures."""
    if not has_boxes(dataset):
        return None, ()
    manifest = session.bundle.manifest
    to_class = class_indices(dataset, manifest)
    truth = [_in_classes(sample.boxes, to_class, sample.name) for sample in dataset]
    crowds = [None if region is None else _in_classes(region, to_class, "") for region in crowd_regions(dataset)]
    classes = manifest.classes or dataset.classes
    labels = [int(one.labels.max()) for one in found if len(one)]
    count = max(len(classes), max(labels, default=0) + 1)
    for sample, boxes in zip(dataset, truth, strict=True):
        if len(boxes.labels) and int(boxes.labels.max()) >= count:
            raise DataError(f"{sample.name}: class {boxes.labels.max()} lies outside the {count} of {manifest.name}")
    metrics = mean_average_precision(truth, found, count, classes=classes, crowds=crowds)
    return metrics, map_resamples(matched_classes(truth, found, count, crowds=crowds))


def _in_classes(boxes: Boxes | None, to_class: Mapping[int, int] | None, name: str) -> Boxes:
    """The objects with the network's class numbers."""
    if boxes is None:
        raise DataError(f"{name}: it is not known what objects it holds, while of other pictures it is")
    if to_class is None:
        return boxes
    return Boxes(boxes.xyxy, np.asarray([to_class[int(label)] for label in boxes.labels], np.int64))


def _runs(
    session: Session, dataset: Subset, reference: Session | None, batch_size: int
) -> Iterator[tuple[list[Detections], list[Detections] | None, int]]:
    """Detections of each batch, of the reference likewise, and how many pictures were answered with NaN."""
    if session.postprocess is None:
        raise UsageError(f"{session.bundle.manifest.name} does not say how its outputs become boxes; convert it again")
    own = evaluation_postprocess(session.postprocess)
    others = None if reference is None else reference.postprocess
    theirs = None if others is None else evaluation_postprocess(others)
    with Progress(f"evaluating {session.bundle.manifest.name}", len(dataset)) as progress:
        for start in range(0, len(dataset), batch_size):
            images = [dataset[index].image for index in range(start, min(start + batch_size, len(dataset)))]
            found, bad = _detections(session, own, images)
            other = None
            if reference is not None:
                assert theirs is not None
                other, _ = _detections(reference, theirs, images)
            yield found, other, bad
            progress.advance(len(images))


def _detections(session: Session, postprocess: Postprocess, images: Sequence[Any]) -> tuple[list[Detections], int]:
    """Detections of each picture; none for one that the engine answers with NaN or infinity."""
    manifest = session.bundle.manifest
    batch, placements = session.place(images)
    outputs = session.run(batch)
    finite = np.ones(len(images), bool)
    for value in outputs.values():
        finite &= np.isfinite(value.reshape(len(images), -1)).all(axis=1)
    whole = finite.nonzero()[0]
    found = [_nothing(manifest.classes) for _ in images]
    if len(whole):
        chosen = outputs if finite.all() else {name: value[whole] for name, value in outputs.items()}
        size = manifest.preprocess.size
        made = postprocess(chosen, size, [placements[index] for index in whole], manifest.classes)
        for index, one in zip(whole, made, strict=True):
            found[int(index)] = one
    return found, len(images) - len(whole)


def _nothing(classes: tuple[str, ...]) -> Detections:
    empty: npt.NDArray[np.float32] = np.zeros((0, 4), np.float32)
    return Detections(empty, np.zeros(0, np.float32), np.zeros(0, np.int64), classes)
