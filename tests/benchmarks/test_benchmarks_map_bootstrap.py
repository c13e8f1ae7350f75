"""mAP of drawn pictures: the evaluator's own figure where each is drawn once, and intervals that cover."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevision.data.base import Boxes
from edgevision.detection.detections import Detections
from edgevision.detection.evaluation import mean_average_precision
from edgevision_benchmarks.map_bootstrap import map_resamples, matched_classes, mean_of_classes
from edgevision_benchmarks.ratio import resampled_interval

pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed: mAP cannot be measured here")

CLASSES = 3


def boxes_of(rng: np.random.Generator, count: int) -> np.ndarray:
    corners = rng.integers(0, 40, (count, 2)).astype(np.float32)
    return np.concatenate([corners, corners + rng.integers(4, 24, (count, 2))], axis=1).astype(np.float32)


def pictures(rng: np.random.Generator, count: int, miss: float = 0.2, shift: float = 3.0):
    """Objects, and detections of most of them, moved a little, among false ones of low score."""
    truth, found = [], []
    for _ in range(count):
        boxes = boxes_of(rng, int(rng.integers(0, 6)))
        labels = rng.integers(0, CLASSES, len(boxes))
        seen = rng.random(len(boxes)) > miss
        moved = boxes[seen] + rng.normal(0, shift, (int(seen.sum()), 4)).round()
        false = boxes_of(rng, int(rng.integers(0, 4)))
        # scores of one digit: ties within and between pictures
        scores = np.concatenate([rng.random(len(moved)) * 0.6 + 0.4, rng.random(len(false)) * 0.7]).round(1)
        every = np.concatenate([moved, false]).astype(np.float32)
        guessed = np.concatenate([labels[seen], rng.integers(0, CLASSES, len(false))])
        truth.append(Boxes(boxes, labels.astype(np.int64)))
        found.append(Detections(every, scores.astype(np.float32), guessed.astype(np.int64)))
    return truth, found


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 6), crowded=st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_picture_once_is_the_evaluators_figure(seed: int, count: int, crowded: bool) -> None:
    rng = np.random.default_rng(seed)
    truth, found = pictures(rng, count)
    regions = [Boxes(boxes_of(rng, 1), rng.integers(0, CLASSES, 1)) if crowded else None for _ in truth]
    expected = mean_average_precision(truth, found, CLASSES, crowds=regions).map
    matches = matched_classes(truth, found, CLASSES, crowds=regions)
    # rounding of a thousand additions
    assert mean_of_classes(matches, np.ones(count, np.int64)) == (
        None if expected is None else pytest.approx(expected, abs=1e-9)
    )


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_a_picture_of_weight_two_is_two_pictures(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, found = pictures(rng, 4)
    # two pictures' equal scores could stand in another order than one's
    found = [Detections(each.boxes, each.scores + rng.random(len(each)).astype(np.float32) * 0.04, each.labels)
             for each in found]  # fmt: skip
    weights = rng.integers(0, 4, 4)
    chosen = np.repeat(np.arange(4), weights)
    expected = None
    if len(chosen):
        expected = mean_average_precision([truth[i] for i in chosen], [found[i] for i in chosen], CLASSES).map
    told = mean_of_classes(matched_classes(truth, found, CLASSES), weights)
    assert told == (None if expected is None else pytest.approx(expected, abs=1e-9))


def test_a_detection_beyond_the_most_of_a_picture_does_not_count() -> None:
    truth = [Boxes(np.array([[0, 0, 9, 9]], np.float32), np.zeros(1, np.int64))]
    boxes = np.array([[20, 20, 29, 29], [0, 0, 9, 9]], np.float32)
    found = [Detections(boxes, np.array([0.9, 0.8], np.float32), np.zeros(2, np.int64))]
    once = np.ones(1, np.int64)
    assert mean_of_classes(matched_classes(truth, found, 1), once) == pytest.approx(0.5)
    assert mean_of_classes(matched_classes(truth, found, 1, max_detections=1), once) == 0.0


def test_draws_are_the_same_for_all_networks_and_tell_how_far_a_figure_scatters() -> None:
    rng = np.random.default_rng(1)
    truth, found = pictures(rng, 40)
    first = map_resamples(matched_classes(truth, found, CLASSES))
    assert first == map_resamples(matched_classes(truth, found, CLASSES))
    assert len(first) == 200
    assert np.std(first) > 0.005
    # moved boxes cost something on each draw: the differences scatter less than either
    worse = [Detections(each.boxes + np.float32(1.0), each.scores, each.labels) for each in found]
    second = map_resamples(matched_classes(truth, worse, CLASSES))
    assert np.std(np.subtract(first, second)) < np.std(first)


def test_where_nothing_can_be_drawn_there_are_no_resamples() -> None:
    truth, found = pictures(np.random.default_rng(2), 1)
    assert map_resamples(matched_classes(truth, found, CLASSES)) == ()
    empty = [Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))] * 3
    nothing = [Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))] * 3
    assert map_resamples(matched_classes(empty, nothing, CLASSES)) == ()
    # one picture of three has an object: draws without it say nothing and are drawn again
    one = [Boxes(np.array([[0, 0, 9, 9]], np.float32), np.zeros(1, np.int64)), *empty[:2]]
    assert map_resamples(matched_classes(one, nothing, CLASSES)) == (0.0,) * 200
    assert resampled_interval(0.5, (), 1).low is None


def test_intervals_cover_the_figure_of_many_pictures() -> None:
    rng = np.random.default_rng(7)
    truth, found = pictures(rng, 3000)
    whole = mean_of_classes(matched_classes(truth, found, CLASSES), np.ones(3000, np.int64))
    assert whole is not None
    covered = 0
    for start in range(0, 3000, 60):
        part = matched_classes(truth[start : start + 60], found[start : start + 60], CLASSES)
        own = mean_of_classes(part, np.ones(60, np.int64))
        assert own is not None
        interval = resampled_interval(own, map_resamples(part, 100), 60)
        assert interval.low is not None
        assert interval.high is not None
        covered += interval.low <= whole <= interval.high
    # 95%; three standard errors of 50 trials are 9 points
    assert covered / 50 >= 0.86
