from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevision.detection.compare import (
    DetectionLimits,
    compare_detections,
    float_limits,
    partners,
    quantized_limits,
)
from edgevision.errors import UsageError


@dataclass(frozen=True)
class Found:
    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


def found(*rows: tuple[float, ...]) -> Found:
    """Rows of left, top, right, bottom, label, score."""
    values = np.asarray(rows, np.float32).reshape(-1, 6)
    return Found(values[:, :4], values[:, 5], values[:, 4].astype(np.int64))


def shuffled(picture: Found, order: npt.NDArray[np.int64]) -> Found:
    return Found(picture.boxes[order], picture.scores[order], picture.labels[order])


@st.composite
def pictures(draw: st.DrawFn) -> Found:
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(0, 12))
    corner = generator.uniform(0, 300, (count, 2))
    boxes = np.hstack([corner, corner + generator.uniform(4, 90, (count, 2))]).astype(np.float32)
    scores = ((generator.permutation(count) + 1) / (count + 1)).astype(np.float32)
    return Found(boxes, scores, generator.integers(0, 3, count))


@settings(max_examples=60, deadline=None)
@given(pictures(), st.randoms(use_true_random=False))
def test_the_same_boxes_in_another_order_are_the_same_findings(picture: Found, random) -> None:
    order = np.asarray(random.sample(range(len(picture.scores)), len(picture.scores)), np.int64)
    compared = compare_detections([picture], [shuffled(picture, order)], confidence=0.25)
    sure = int((picture.scores >= 0.25).sum())
    assert (compared.expected, compared.actual, compared.passed) == (sure, sure, True)
    if sure:
        # a box overlaps itself with 1, which float32 areas round by parts in ten million
        assert compared.matched == 1.0
        assert compared.mean_iou == pytest.approx(1.0, abs=1e-6)
        assert compared.score_difference == 0.0


@settings(max_examples=60, deadline=None)
@given(pictures(), pictures())
def test_partners_are_of_one_class_overlap_and_are_taken_once(first: Found, second: Found) -> None:
    pairs = partners(first, second, iou=0.1)
    assert len({i for i, _, _ in pairs}) == len({j for _, j, _ in pairs}) == len(pairs)
    for i, j, overlap in pairs:
        assert first.labels[i] == second.labels[j]
        assert 0.1 <= overlap <= 1.0 + 1e-6
    # greedy: whoever found no partner has none left that nobody surer took
    taken = {j for _, j, _ in pairs}
    for i in set(range(len(first.scores))) - {i for i, _, _ in pairs}:
        alone = Found(first.boxes[i : i + 1], first.scores[i : i + 1], first.labels[i : i + 1])
        free = np.asarray([j for j in range(len(second.scores)) if j not in taken], np.int64)
        assert not partners(alone, shuffled(second, free), iou=0.1)


def test_the_surest_box_takes_the_partner_it_overlaps_most() -> None:
    first = found((0, 0, 10, 10, 0, 0.5), (1, 0, 11, 10, 0, 0.9))
    second = found((0, 0, 10, 10, 0, 0.9), (30, 30, 40, 40, 0, 0.9))
    assert [(i, j) for i, j, _ in partners(first, second)] == [(1, 0)]


def test_a_score_that_crosses_the_confidence_by_a_hair_is_no_lost_box() -> None:
    one, other = found((0, 0, 10, 10, 0, 0.26)), found((0, 0, 10, 10, 0, 0.24))
    for pair in ((one, other), (other, one)):
        compared = compare_detections([pair[0]], [pair[1]], confidence=0.25)
        assert compared.matched == 1.0
        assert compared.survives


def test_lost_boxes_stray_boxes_and_other_classes_have_no_partner() -> None:
    reference = found((0, 0, 10, 10, 0, 0.9), (20, 20, 40, 40, 1, 0.8), (50, 50, 90, 90, 2, 0.7))
    engine = found((0, 0, 10, 10, 0, 0.9), (20, 20, 40, 40, 2, 0.8), (200, 200, 240, 240, 2, 0.7))
    compared = compare_detections([reference], [engine], confidence=0.25)
    # one pair, seen from both sides, of three boxes on each
    assert compared.matched == pytest.approx(2 / 6)
    assert not compare_detections([reference], [engine], confidence=0.25, limits=DetectionLimits(0.5, 0.5)).passed
    assert compare_detections([reference], [engine], confidence=0.25, limits=DetectionLimits(0.3, 0.5)).passed


def test_boxes_at_other_places_fail_by_their_overlap() -> None:
    reference, engine = found((0, 0, 100, 100, 0, 0.9)), found((0, 0, 100, 70, 0, 0.9))
    compared = compare_detections([reference], [engine], confidence=0.25, limits=DetectionLimits(0.5, 0.9))
    assert (compared.matched, compared.mean_iou, compared.passed) == (1.0, pytest.approx(0.7), False)


@pytest.mark.parametrize("engine", [found(), found((0, 0, 10, 10, 0, 0.004)), found((0, 0, 10, 10, 0, np.nan))])
def test_an_engine_that_lost_every_score_fails_without_any_limit(engine: Found) -> None:
    compared = compare_detections([found((0, 0, 10, 10, 0, 0.9))], [engine], confidence=0.25)
    assert not compared.survives
    assert not compared.passed


def test_lost_scores_are_seen_below_the_confidence_too() -> None:
    reference = found((0, 0, 10, 10, 0, 0.1))
    assert not compare_detections([reference], [found()], confidence=0.25).survives
    assert compare_detections([reference], [found((0, 0, 10, 10, 0, 0.08))], confidence=0.25).survives


def test_where_nothing_is_found_on_either_side_there_is_nothing_to_lose() -> None:
    compared = compare_detections([found()], [found()], confidence=0.25, limits=DetectionLimits(0.9, 0.9))
    assert (compared.matched, compared.mean_iou, compared.passed) == (None, None, True)
    assert quantized_limits(compared) is None
    assert float_limits("fp32", 0) is None


def test_boxes_out_of_nothing_fail() -> None:
    compared = compare_detections([found()], [found((0, 0, 9, 9, 0, 0.9))], confidence=0.25,
                                  limits=DetectionLimits(0.9, 0.9))  # fmt: skip
    assert (compared.matched, compared.passed) == (0.0, False)


def test_an_engine_may_lose_as_much_again_as_the_plan_lost() -> None:
    kept = compare_detections([found()], [found()], confidence=0.25)
    kept = replace(kept, expected=100, actual=100, matched=0.95, mean_iou=0.9)
    limits = quantized_limits(kept)
    assert limits == DetectionLimits(pytest.approx(0.89), pytest.approx(0.78))
    # whatever the plan lost, an engine that keeps less than half of the boxes does not pass
    assert quantized_limits(replace(kept, matched=0.3, mean_iou=0.2)) == DetectionLimits(0.5, 0.6)
    assert float_limits("fp32", 200) == DetectionLimits(pytest.approx(0.97), 0.98)


def test_both_sides_need_the_same_pictures() -> None:
    with pytest.raises(UsageError, match="of 1 and of 2 pictures"):
        compare_detections([found()], [found(), found()], confidence=0.25)
