"""mAP against a plain implementation of COCO's rules, written here from their description."""

from __future__ import annotations

import builtins
import sys
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevision.data.base import Boxes
from edgevision.detection.evaluation import confusion_matrix, mean_average_precision
from edgevision.errors import DataError, MissingDependencyError, UsageError

pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed: mAP cannot be measured here")

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RANGES = {"map": (0, 1e10), "map_small": (0, 32**2), "map_medium": (32**2, 96**2), "map_large": (96**2, 1e10)}


@dataclass(frozen=True)
class Found:
    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


def boxes(*rows: tuple[float, ...]) -> Boxes:
    """Rows of left, top, right, bottom, label."""
    values = np.asarray(rows, np.float32).reshape(-1, 5)
    return Boxes(values[:, :4], values[:, 4].astype(np.int64))


def found(*rows: tuple[float, ...]) -> Found:
    """Rows of left, top, right, bottom, label, score."""
    values = np.asarray(rows, np.float32).reshape(-1, 6)
    return Found(values[:, :4], values[:, 5], values[:, 4].astype(np.int64))


def area(box: npt.NDArray[np.float64]) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def overlap(box: npt.NDArray[np.float64], other: npt.NDArray[np.float64], crowd: bool) -> float:
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return float(shared / (area(box) if crowd else area(box) + area(other) - shared))


def plain_ap(truths, crowds, detections, label: int, threshold: float, limits: tuple[float, float]) -> float | None:
    """One class, one threshold, one range of areas; None where no object is in the range."""
    judged: list[tuple[float, bool]] = []  # score, right
    objects = 0
    for truth, crowd, detected in zip(truths, crowds, detections, strict=True):
        rows = [(box, False) for box, of in zip(truth.xyxy, truth.labels, strict=True) if of == label]
        rows += [(box, True) for box, of in zip(crowd.xyxy, crowd.labels, strict=True) if of == label]
        regions = [(np.float64(box), is_crowd) for box, is_crowd in rows]
        ignored = [is_crowd or not limits[0] <= area(box) <= limits[1] for box, is_crowd in regions]
        objects += ignored.count(False)
        taken = [False] * len(regions)
        mine = [index for index in np.argsort(-detected.scores, kind="stable") if detected.labels[index] == label]
        for index in mine[:100]:
            box = np.float64(detected.boxes[index])
            best, best_overlap = None, min(threshold, 1 - 1e-10)
            # objects that count first, then the ignored ones: a match with one of the first is kept
            for wanted in (False, True):
                if wanted and best is not None:
                    break
                for number, (region, is_crowd) in enumerate(regions):
                    if ignored[number] is wanted and (is_crowd or not taken[number]):
                        value = overlap(box, region, is_crowd)
                        if value >= best_overlap:
                            best, best_overlap = number, value
            if best is None:
                if limits[0] <= area(box) <= limits[1]:
                    judged.append((float(detected.scores[index]), False))
                continue
            taken[best] = True
            if not ignored[best]:
                judged.append((float(detected.scores[index]), True))
    if not objects:
        return None
    judged.sort(key=lambda pair: -pair[0])
    right = np.cumsum([hit for _, hit in judged])
    recall = right / objects
    precision = right / np.arange(1, len(judged) + 1)
    levels = [precision[recall >= level] for level in np.linspace(0, 1, 101)]
    return float(np.mean([part.max() if len(part) else 0.0 for part in levels]))


def plain_mean(truths, crowds, detections, classes: int, limits=(0, 1e10), thresholds=THRESHOLDS) -> float | None:
    values = [
        plain_ap(truths, crowds, detections, label, threshold, limits)
        for label in range(classes)
        for threshold in thresholds
    ]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def close(value: float | None, expected: float | None) -> bool:
    # float64 on both sides: additions in another order
    return value is None if expected is None else value is not None and abs(value - expected) < 1e-9


@st.composite
def pictures(draw: st.DrawFn):
    """Pictures with objects, crowds and detections: near the objects, some elsewhere, some of another class."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    classes = draw(st.integers(1, 3))
    truths, crowds, detections = [], [], []
    for _ in range(draw(st.integers(1, 4))):
        count, crowd_count, more = (draw(st.integers(0, limit)) for limit in (5, 1, 3))
        corner = generator.uniform(0, 200, (count + crowd_count, 2))
        side = generator.choice([12.0, 50.0, 150.0], (count + crowd_count, 1)) * generator.uniform(0.7, 1.4, (1, 2))
        regions = np.hstack([corner, corner + side])
        labels = generator.integers(0, classes, count + crowd_count)
        truths.append(Boxes(np.float32(regions[:count]), labels[:count]))
        crowds.append(Boxes(np.float32(regions[count:]), labels[count:]))
        near = regions[generator.integers(0, len(regions), count + 2)] if len(regions) else np.zeros((0, 4))
        near = near + generator.normal(0, 4, near.shape) * (near[:, 2:3] - near[:, :1]) / 60
        corner = generator.uniform(0, 200, (more, 2))
        stray = np.hstack([corner, corner + generator.uniform(5, 120, (more, 2))])
        all_boxes = np.float32(np.vstack([near, stray]))
        # distinct scores: what ties do is nobody's rule
        scores = np.float32(generator.permutation(len(all_boxes)) + 1) / 64 + np.float32(len(truths)) / 1024
        detections.append(Found(all_boxes, scores, generator.integers(0, classes, len(all_boxes))))
    return truths, crowds, detections, classes


@settings(max_examples=60, deadline=None)
@given(pictures())
def test_the_figures_are_those_of_the_plain_rules(case) -> None:
    truths, crowds, detections, classes = case
    metrics = mean_average_precision(truths, detections, classes, crowds=crowds)
    for name, limits in RANGES.items():
        assert close(getattr(metrics, name), plain_mean(truths, crowds, detections, classes, limits)), name
    assert close(metrics.map50, plain_mean(truths, crowds, detections, classes, thresholds=THRESHOLDS[:1]))
    assert close(metrics.map75, plain_mean(truths, crowds, detections, classes, thresholds=THRESHOLDS[5:6]))
    for label, of_class in enumerate(metrics.per_class):
        values = [plain_ap(truths, crowds, detections, label, threshold, (0, 1e10)) for threshold in THRESHOLDS]
        assert close(of_class.map, None if values[0] is None else float(np.mean(values)))


def test_perfect_detections_have_an_average_precision_of_one() -> None:
    truths = [boxes((10, 10, 30, 30, 0), (50, 50, 110, 110, 1)), boxes(), boxes((0, 0, 200, 150, 1))]
    detections = [
        found((10, 10, 30, 30, 0, 0.9), (50, 50, 110, 110, 1, 0.8)),
        found(),
        found((0, 0, 200, 150, 1, 0.3)),
    ]
    metrics = mean_average_precision(truths, detections, 2, classes=("cell", "plate"))
    figures = metrics.to_dict()
    assert [figures[key] for key in ("map", "map50", "map75", "map_small", "map_medium", "map_large")] == [1.0] * 6
    assert (metrics.n, metrics.objects, metrics.recall) == (3, 3, 1.0)
    assert figures["per_class"]["plate"] == {"map": 1.0, "map50": 1.0, "recall": 1.0, "objects": 2}
    assert metrics.precision50.tolist() == np.ones((2, 101)).tolist()


def test_no_detections_have_an_average_precision_of_zero() -> None:
    metrics = mean_average_precision([boxes((10, 10, 30, 30, 0))], [found()], 2)
    assert (metrics.map, metrics.map50, metrics.map75, metrics.map_small) == (0.0, 0.0, 0.0, 0.0)
    # no object of that size, nor of that class
    assert (metrics.map_medium, metrics.map_large, metrics.per_class[1].map) == (None, None, None)
    assert list(metrics.to_dict()["per_class"]) == ["0"]
    assert np.isnan(metrics.precision50[1]).all()


def test_the_same_without_any_detection_and_with_one_that_finds_nothing() -> None:
    truths = [boxes((10, 10, 30, 30, 0), (40, 40, 72, 72, 0))]
    without = mean_average_precision(truths, [found()], 1)
    stray = mean_average_precision(truths, [found((200, 200, 220, 220, 0, 0.5))], 1)
    assert without.to_dict() == stray.to_dict()


def test_without_objects_there_is_no_figure() -> None:
    for detections in ([found()], [found((0, 0, 9, 9, 0, 0.5))]):
        metrics = mean_average_precision([boxes()], detections, 1)
        assert (metrics.map, metrics.map50, metrics.recall, metrics.n, metrics.objects) == (None, None, None, 1, 0)
    assert mean_average_precision([], [], 1).map is None


def test_a_crowd_counts_neither_for_nor_against() -> None:
    truths = [boxes((10, 10, 30, 30, 0))]
    # two more boxes inside the crowd, surer than the right one
    detections = [found((110, 110, 130, 130, 0, 0.9), (150, 150, 170, 170, 0, 0.8), (10, 10, 30, 30, 0, 0.7))]
    crowd = [boxes((100, 100, 200, 200, 0))]
    assert mean_average_precision(truths, detections, 1, crowds=crowd).map == 1.0
    assert mean_average_precision(truths, detections, 1, crowds=crowd).objects == 1
    assert mean_average_precision(truths, detections, 1).map == pytest.approx(1 / 3)


def test_sizes_are_those_of_original_pixels() -> None:
    truths = [boxes((0, 0, 31, 31, 0), (100, 100, 195, 195, 0), (300, 300, 400, 400, 0))]
    detections = [found((0, 0, 31, 31, 0, 0.9), (300, 300, 400, 400, 0, 0.8))]
    metrics = mean_average_precision(truths, detections, 1)
    assert (metrics.map_small, metrics.map_medium, metrics.map_large) == (1.0, 0.0, 1.0)


def test_only_the_surest_hundred_of_a_picture_and_class_are_judged() -> None:
    stray = [(300, 300, 320, 320, 0, 0.9 - index / 1000) for index in range(100)]
    truths = [boxes((10, 10, 30, 30, 0))]
    assert mean_average_precision(truths, [found(*stray, (10, 10, 30, 30, 0, 0.1))], 1).map == 0.0
    assert mean_average_precision(truths, [found(*stray[:99], (10, 10, 30, 30, 0, 0.1))], 1).map == pytest.approx(0.01)


def test_detections_that_are_not_finite_are_left_out_and_counted() -> None:
    good = (10, 10, 30, 30, 0, 0.5)
    bad = [(np.nan, 10, 30, 30, 0, 0.9), (10, 10, np.inf, 30, 0, 0.9), (10, 10, 30, 30, 0, np.nan)]
    metrics = mean_average_precision([boxes(good[:5])], [found(*bad, good)], 1)
    assert (metrics.map, metrics.not_finite) == (1.0, 3)


def test_a_detection_without_area_counts_against_and_an_object_without_area_not_at_all() -> None:
    truths = [boxes((10, 10, 30, 30, 0), (5, 5, 5, 9, 0))]
    metrics = mean_average_precision(truths, [found((7, 7, 7, 7, 0, 0.9), (10, 10, 30, 30, 0, 0.5))], 1)
    assert (metrics.map, metrics.objects) == (pytest.approx(0.5), 1)


def test_a_label_outside_the_classes_names_the_picture() -> None:
    with pytest.raises(DataError, match="picture 1: label 2 lies outside the 2 classes"):
        mean_average_precision([boxes(), boxes((1, 1, 5, 5, 2))], [found(), found()], 2)
    with pytest.raises(DataError, match="picture 0: label -1"):
        mean_average_precision([boxes()], [found((1, 1, 5, 5, -1, 0.5))], 2)


def test_every_picture_needs_both_sides() -> None:
    with pytest.raises(UsageError, match="2 pictures with objects and 1 with detections"):
        mean_average_precision([boxes(), boxes()], [found()], 1)
    with pytest.raises(UsageError, match="num_classes"):
        mean_average_precision([boxes()], [found()], 0)


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    mean_average_precision([boxes((1, 1, 5, 5, 0))], [found((1, 1, 5, 5, 0, 0.5))], 1)
    assert capfd.readouterr() == ("", "")


def test_a_missing_evaluator_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgevision.dependencies.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "faster_coco_eval", raising=False)
    with pytest.raises(MissingDependencyError, match=r'pip install "edgevision\[detection\]"'):
        mean_average_precision([boxes((1, 1, 5, 5, 0))], [found((1, 1, 5, 5, 0, 0.5))], 1)


def test_the_module_itself_needs_numpy_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def guarded(name: str, *rest: object, **named: object) -> object:
        assert not name.startswith(("faster_coco_eval", "torch")), name
        return real(name, *rest, **named)

    monkeypatch.delitem(sys.modules, "edgevision.detection.evaluation")
    monkeypatch.setattr(builtins, "__import__", guarded)
    import edgevision.detection.evaluation as module

    assert module.MAX_DETECTIONS == 100


def test_the_confusion_matrix_counts_every_object_and_every_detection() -> None:
    truths = [boxes((10, 10, 30, 30, 0), (50, 50, 90, 90, 1), (100, 100, 140, 140, 1))]
    detections = [
        found(
            (10, 10, 30, 30, 0, 0.9),  # right
            (50, 50, 90, 90, 0, 0.8),  # the wrong class
            (50, 50, 90, 90, 1, 0.7),  # its object is taken
            (200, 200, 240, 240, 1, 0.6),  # nothing there
            (100, 100, 140, 140, 1, 0.1),  # below the confidence
        )
    ]
    matrix = confusion_matrix(truths, detections, 2)
    assert matrix.tolist() == [[1, 0, 0], [1, 0, 1], [0, 2, 0]]
