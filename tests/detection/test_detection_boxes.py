from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgevision.detection.boxes import clip_boxes, cxcywh_to_xyxy, iou_matrix, xyxy_to_cxcywh

MANY = settings(max_examples=80, deadline=None)


@st.composite
def boxes(draw: st.DrawFn) -> np.ndarray:
    # whole pixels on a small field: overlaps, equal boxes and boxes without area all occur, and float32 is exact
    corners = draw(arrays(np.int64, (draw(st.integers(0, 12)), 2, 2), elements=st.integers(0, 8)))
    return np.sort(corners, axis=1).reshape(-1, 4).astype(np.float32)


def plain_iou(a: np.ndarray, b: np.ndarray) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def test_iou_by_hand():
    first = np.float32([[0, 0, 2, 2], [0, 0, 0, 0]])
    second = np.float32([[0, 0, 2, 2], [1, 0, 3, 2], [2, 0, 4, 2], [0, 0, 0, 0]])
    # halves that share 2 of 6 units; neighbours that share an edge; a box without area
    assert iou_matrix(first, second) == pytest.approx(np.asarray([[1, 1 / 3, 0, 0], [0, 0, 0, 0]]))


@MANY
@given(boxes(), boxes())
def test_iou_is_that_of_every_pair(first, second):
    found = iou_matrix(first, second)
    assert found.shape == (len(first), len(second))
    assert found.dtype == np.float32
    expected = np.asarray([[plain_iou(a, b) for b in second] for a in first]).reshape(found.shape)
    # one float32 division of exact numbers
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_boxes_turned_inside_out_overlap_nothing():
    assert iou_matrix(np.float32([[5, 5, 0, 0]]), np.float32([[0, 0, 5, 5]])).tolist() == [[0]]


@MANY
@given(boxes())
def test_forms_of_a_box_go_back_and_forth(given_):
    # halves of whole numbers: exact
    assert np.array_equal(cxcywh_to_xyxy(xyxy_to_cxcywh(given_)), given_)


def test_clipping_leaves_what_is_in_the_picture():
    given_ = np.float32([[-5, -5, 5, 5], [90, 40, 120, 80], [200, 200, 300, 300], [10, 10, 20, 20]])
    clipped = clip_boxes(given_, 100, 50)
    assert clipped.tolist() == [[0, 0, 5, 5], [90, 40, 100, 50], [100, 50, 100, 50], [10, 10, 20, 20]]
    assert given_[0, 0] == -5
