from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFont

from edgevision.detection.detections import Detections
from edgevision.detection.visualize import class_color, draw_boxes, draw_detections

GREY = (90, 90, 90)


def picture(width: int = 200, height: int = 160) -> Image.Image:
    return Image.new("RGB", (width, height), GREY)


def changed(image: Image.Image) -> np.ndarray:
    """Which pixels are no longer the picture's."""
    return (np.asarray(image) != GREY).any(axis=2)


def inked(image: Image.Image) -> int:
    """How many pixels are neither the picture's nor the plate's: those of letters."""
    return int((changed(image) & (np.asarray(image) != class_color(0)).any(axis=2)).sum())


def test_a_box_is_drawn_where_it_lies_in_its_class_colour() -> None:
    drawn = draw_boxes(picture(), np.asarray([[40, 60, 120, 140]], np.float32), np.asarray([3]))
    pixels = np.asarray(drawn)
    for column, row in ((40, 100), (119, 100), (80, 60), (80, 139)):
        assert tuple(pixels[row, column]) == class_color(3)
    # nothing beyond its edges, nothing inside, but the name's plate above
    assert not changed(drawn)[140:].any()
    assert not changed(drawn)[:, 120:].any()
    assert not changed(drawn)[70:130, 50:110].any()


def test_the_picture_given_is_left_as_it_was() -> None:
    image = picture()
    drawn = draw_boxes(image, np.asarray([[4, 4, 50, 50]]), np.asarray([0]))
    assert not changed(image).any()
    assert (drawn.size, drawn.mode) == (image.size, "RGB")


def test_names_and_scores_are_written_and_differ() -> None:
    boxes, labels = np.asarray([[30, 60, 120, 140]]), np.asarray([1])
    plain = draw_boxes(picture(), boxes, labels, classes=("cell", "plate"))
    scored = draw_boxes(picture(), boxes, labels, scores=np.asarray([0.87]), classes=("cell", "plate"))
    other = draw_boxes(picture(), boxes, labels, classes=("cell", "horse"))
    assert len({image.tobytes() for image in (plain, scored, other)}) == 3


@pytest.mark.parametrize(
    "box", [(0, 0, 30, 30), (170, 0, 200, 8), (185, 150, 200, 160), (0, 150, 10, 160), (0, 0, 200, 160)]
)
def test_names_stay_inside_the_picture(box: tuple[float, ...]) -> None:
    name = "platelets"
    drawn = draw_boxes(picture(), np.asarray([box]), np.asarray([0]), classes=(name,))
    # as many inked pixels as in the middle of a picture: nothing of the plate is cut off
    middle = draw_boxes(picture(), np.asarray([[60, 60, 90, 90]]), np.asarray([0]), classes=(name,))
    assert inked(drawn) == inked(middle) > 0


def test_the_surest_box_lies_on_top() -> None:
    boxes = np.asarray([[20, 60, 100, 140], [20, 60, 100, 140]])
    drawn = draw_boxes(picture(), boxes, np.asarray([0, 1]), scores=np.asarray([0.9, 0.2]))
    assert tuple(np.asarray(drawn)[100, 20]) == class_color(0)


def test_boxes_that_cannot_be_seen_are_left_out() -> None:
    boxes = np.asarray([[np.nan, 0, 9, 9], [0, 0, np.inf, 9], [300, 300, 400, 400], [50, 50, 40, 60], [-9, -9, 0, 0]])
    assert not changed(draw_boxes(picture(), boxes, np.zeros(5, int))).any()
    assert changed(draw_boxes(picture(), np.asarray([[-50, -50, 20, 20]]), np.zeros(1, int))).any()


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.lists(st.tuples(*[st.floats(-1e6, 1e6, width=32)] * 4), max_size=4),
    st.text(max_size=12),
)
def test_any_box_in_any_picture_can_be_drawn(width: int, height: int, rows, name: str) -> None:
    boxes = np.asarray(rows, np.float32).reshape(-1, 4)
    drawn = draw_boxes(picture(width, height), boxes, np.zeros(len(boxes), int), classes=(name,))
    assert drawn.size == (width, height)


def test_lines_are_wider_in_larger_pictures() -> None:
    widths = []
    for side in (200, 2000):
        drawn = draw_boxes(picture(side, side), np.asarray([[side / 4, side / 4, side / 2, side / 2]]), np.asarray([0]))
        widths.append(int(changed(drawn)[side // 2 - side // 10, : side // 2 - side // 10].sum()))
    assert widths[0] == 1
    assert widths[1] == 8


def test_classes_numbered_near_each_other_have_colours_apart() -> None:
    colors = np.asarray([class_color(label) for label in range(80)], float)
    for label in range(79):
        assert np.linalg.norm(colors[label] - colors[label + 1]) > 60


def test_a_font_that_knows_latin_alone_writes_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    bitmap = ImageFont.load_default_imagefont()

    def older(size: int | None = None) -> ImageFont.ImageFont:
        if size is not None:
            raise TypeError("load_default() takes 0 positional arguments but 1 was given")
        return bitmap

    monkeypatch.setattr(ImageFont, "load_default", older)
    drawn = draw_boxes(picture(), np.asarray([[30, 60, 120, 140]]), np.asarray([0]), classes=("клетка",))
    assert changed(drawn).any()


def test_detections_plot_themselves() -> None:
    found = Detections(
        np.asarray([[30, 60, 120, 140]], np.float32), np.asarray([0.9], np.float32), np.asarray([1]), ("cell", "plate")
    )
    expected = draw_boxes(picture(), found.boxes, found.labels, scores=found.scores, classes=found.classes)
    assert found.plot(picture()).tobytes() == expected.tobytes() == draw_detections(picture(), found).tobytes()
    assert found.plot(np.asarray(picture())).tobytes() == expected.tobytes()
