from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgevision.preprocess import RESIZE_RULES, Preprocess


@st.composite
def preprocesses(draw: st.DrawFn) -> Preprocess:
    rule = draw(st.sampled_from(RESIZE_RULES))
    size = (draw(st.integers(1, 400)), draw(st.integers(1, 400)))
    resize_to = draw(st.integers(max(size), 500)) if rule == "shorter_side" else None
    return Preprocess(size, rule, resize_to)


sides = st.integers(1, 20_000)


@settings(max_examples=120, deadline=None)
@given(preprocesses(), sides, sides, st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=1, max_size=5))
def test_there_and_back_again(preprocess, width, height, shares):
    placement = preprocess.placement(width, height)
    boxes = np.asarray(shares, np.float32) * np.float32([width, height, width, height])
    back = placement.to_original(placement.to_input(boxes))
    # In between stands a float32 of at most some 10,000 pixels of the input, known to 2⁻²⁴ of itself, here divided by
    # the scale: at 1 pixel for 20,000 that is what one pixel of the input is in the picture's.
    reach = np.float32([width, height, width, height]) + np.abs(
        np.float32([placement.left / placement.scale_x, placement.top / placement.scale_y] * 2)
    )
    assert (np.abs(back - boxes) <= 4 * 2.0**-24 * reach + 1e-6).all()


@settings(max_examples=100, deadline=None)
@given(preprocesses(), sides, sides)
def test_the_whole_picture_lies_where_the_rule_says(preprocess, width, height):
    placement = preprocess.placement(width, height)
    left, top, right, bottom = placement.to_input(np.float32([[0, 0, width, height]]))[0]
    rows, columns = preprocess.size
    # float32 of at most some 10,000 pixels
    close = {"abs": 2e-2}
    if preprocess.resize == "stretch":
        assert (left, top, right, bottom) == pytest.approx((0, 0, columns, rows), **close)
    elif preprocess.resize == "letterbox":
        assert left >= 0
        assert top >= 0
        assert right <= columns + 2e-2
        assert bottom <= rows + 2e-2
        # one side fills the input, the border is the same on both sides but for the odd pixel
        assert right - left == pytest.approx(columns, **close) or bottom - top == pytest.approx(rows, **close)
        assert abs((columns - right) - left) <= 1 + 2e-2
        assert abs((rows - bottom) - top) <= 1 + 2e-2
    else:
        assert left <= 2e-2
        assert top <= 2e-2
        assert right >= columns - 2e-2
        assert bottom >= rows - 2e-2


CASES = [
    (Preprocess((120, 160)), (640, 200)),
    (Preprocess((120, 160), "letterbox"), (640, 200)),
    (Preprocess((120, 160), "letterbox"), (90, 333)),
    (Preprocess((160, 160), "letterbox", interpolation="nearest"), (50, 31)),
    (Preprocess((96, 128), "shorter_side", 150), (640, 300)),
    (Preprocess((97, 128), "shorter_side", 151, interpolation="bicubic"), (301, 640)),
    (Preprocess((64, 64), "letterbox", color="GRAY", mean=(0.0,), std=(1.0,)), (333, 77)),
]


@pytest.mark.parametrize(("preprocess", "size"), CASES)
def test_a_marker_lands_where_it_is_told(preprocess, size):
    width, height = size
    # around the middle, so that no rule crops it; as wide as a third of the shorter side
    side = min(size) // 3
    left, top = width // 2 - side // 2 + 3, height // 2 - side // 2 - 2
    picture = np.zeros((height, width, 3), np.uint8)
    picture[top : top + side, left : left + side] = 255
    drawn = np.asarray(preprocess.geometry(Image.fromarray(picture)), np.float64)
    drawn = (drawn if drawn.ndim == 2 else drawn.mean(axis=2)) / 255
    if preprocess.resize == "letterbox":
        drawn = np.where(np.isclose(drawn, 114 / 255, atol=1e-6), 0, drawn)
    told = preprocess.placement(width, height).to_input(np.asarray([[left, top, left + side, top + side]], np.float32))[
        0
    ]
    # edges from the profile through the middle of the marker: the sum along a line is its length, whatever the blur
    middle_x, middle_y = int((told[0] + told[2]) / 2), int((told[1] + told[3]) / 2)
    row, column = drawn[middle_y], drawn[:, middle_x]
    found = [_edges(row), _edges(column)]
    # nearest neighbours move an edge by half a pixel of the input, or of the picture where that is the larger
    placement = preprocess.placement(width, height)
    for (start, end), low, high, scale in (
        (found[0], told[0], told[2], placement.scale_x), (found[1], told[1], told[3], placement.scale_y),
    ):  # fmt: skip
        slack = 0.5 * max(1.0, scale) + 0.02 if preprocess.interpolation == "nearest" else 0.1
        assert abs(start - low) <= slack
        assert abs(end - high) <= slack


def _edges(profile: np.ndarray) -> tuple[float, float]:
    """Start and end of the bright part, from its length and its centre of mass."""
    length = profile.sum()
    centre = (profile * (np.arange(len(profile)) + 0.5)).sum() / length
    return centre - length / 2, centre + length / 2
