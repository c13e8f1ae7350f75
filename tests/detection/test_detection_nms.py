from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgevision.detection import nms
from edgevision.detection.candidates import Candidates
from edgevision.detection.nms import non_maximum_suppression
from edgevision.errors import UsageError


def plain_suppression(boxes, scores, labels, iou, class_agnostic, max_detections) -> list[int]:
    """The textbook's loop over pairs."""
    kept: list[int] = []
    for index in sorted(range(len(scores)), key=lambda i: -scores[i]):
        rivals = (other for other in kept if class_agnostic or labels[other] == labels[index])
        if all(plain_iou(boxes[index], boxes[other]) <= iou for other in rivals):
            kept.append(index)
    return kept[:max_detections]


def plain_iou(a, b) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return float(shared / union) if union > 0 else 0.0


@st.composite
def crowd(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    count = draw(st.integers(0, 40))
    corners = draw(arrays(np.int64, (count, 2, 2), elements=st.integers(0, 8)))
    boxes = np.sort(corners, axis=1).reshape(count, 4).astype(np.float32)
    # few values: equal scores occur
    scores = draw(arrays(np.float32, count, elements=st.sampled_from([0.125, 0.25, 0.5, 0.75])))
    return boxes, scores, draw(arrays(np.int64, count, elements=st.integers(0, 2)))


# whole pixels give ratios of small integers: none lies within float32's rounding of these
THRESHOLDS = st.sampled_from([0.0, 0.2345, 0.4567, 0.7013, 1.0])


@settings(max_examples=150, deadline=None)
@given(crowd(), THRESHOLDS, st.booleans(), st.integers(1, 40), st.sampled_from([3, 7, 256]))
def test_suppression_is_the_plain_loop(given_, iou, class_agnostic, most, block):
    boxes, scores, labels = given_
    before, nms._BLOCK = nms._BLOCK, block
    try:
        kept = non_maximum_suppression(
            boxes, scores, labels, iou=iou, class_agnostic=class_agnostic, max_detections=most
        )
    finally:
        nms._BLOCK = before
    assert kept.tolist() == plain_suppression(boxes, scores, labels, iou, class_agnostic, most)


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_a_large_crowd_is_the_plain_loop_too(class_agnostic):
    rng = np.random.default_rng(0)
    # more than two blocks; sizes of a picture of 20,000 pixels, where a class offset would cost float32 its precision
    corners = rng.uniform(0, 19_000, (600, 2)) // 1500 * 1500 + rng.integers(0, 40, (600, 2))
    boxes = np.concatenate([corners, corners + rng.integers(300, 420, (600, 2))], axis=1).astype(np.float32)
    scores, labels = rng.permutation(600).astype(np.float32) / 600, rng.integers(0, 3, 600)
    kept = non_maximum_suppression(boxes, scores, labels, iou=0.45, class_agnostic=class_agnostic, max_detections=600)
    assert kept.tolist() == plain_suppression(boxes, scores, labels, 0.45, class_agnostic, 600)
    assert len(kept) < 600


def test_the_best_of_a_class_stays_and_so_do_other_classes():
    boxes = np.float32([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 9], [20, 20, 30, 30]])
    scores, labels = np.float32([0.5, 0.9, 0.4, 0.3]), np.asarray([0, 0, 1, 0])
    assert non_maximum_suppression(boxes, scores, labels, iou=0.45).tolist() == [1, 2, 3]
    assert non_maximum_suppression(boxes, scores, labels, iou=0.45, class_agnostic=True).tolist() == [1, 3]


def test_a_suppressed_box_suppresses_nobody():
    # each overlaps the next by 2/3, the first and the last by less than half
    chain = np.float32([[0, 0, 10, 10], [2, 0, 12, 10], [4, 0, 14, 10]])
    assert non_maximum_suppression(chain, np.float32([0.9, 0.8, 0.7]), np.zeros(3, int), iou=0.5).tolist() == [0, 2]


def test_nothing_gives_nothing():
    empty = non_maximum_suppression(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, int), iou=0.5)
    assert empty.shape == (0,)


def test_lengths_that_differ_are_refused():
    with pytest.raises(UsageError, match=r"as many boxes \[N, 4\] as scores.*got \[2, 4\], \[3\] and \[2\]"):
        non_maximum_suppression(np.zeros((2, 4)), np.zeros(3), np.zeros(2, int), iou=0.5)
    with pytest.raises(UsageError, match=r"candidates are boxes \[K, 4\].*got \[2, 5\], \[2\] and \[2\]"):
        Candidates(np.zeros((2, 5)), np.zeros(2), np.zeros(2))


@settings(max_examples=50, deadline=None)
@given(arrays(np.float32, st.integers(0, 30), elements=st.floats(0, 1, width=32)), st.integers(1, 40))
def test_the_best_are_those_with_the_highest_scores(scores, count):
    boxes = np.repeat(np.arange(len(scores), dtype=np.float32)[:, None], 4, axis=1)
    best = Candidates(boxes, scores, np.arange(len(scores))).best(count)
    assert sorted(best.scores.tolist()) == sorted(scores.tolist())[-count:]
    assert np.array_equal(best.boxes[:, 0].astype(int), best.labels)
