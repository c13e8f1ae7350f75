"""Boxes with their class names drawn into a picture. Pillow alone."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from edgevision.images import ImageLike, to_image

if TYPE_CHECKING:
    from edgevision.detection.evaluation import FoundBoxes

Color: TypeAlias = "tuple[int, int, int]"

# hues of successive classes are this far apart, which no two of the first few dozen come near to repeating
_GOLDEN_RATIO = 0.618033988749895
# sRGB luma above which black letters are easier to read than white ones
_BRIGHT = 140


def class_color(label: int) -> Color:
    """Colour of a class: the same everywhere, and unlike those of the classes numbered near it."""
    hue = (0.02 + label * _GOLDEN_RATIO) % 1.0
    # neighbours on the circle differ in brightness too, for those who see hues alike
    value = (0.95, 0.75, 0.6)[label % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_boxes(
    image: ImageLike,
    boxes: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    *,
    scores: npt.NDArray[Any] | None = None,
    classes: Sequence[str] = (),
    width: int | None = None,
) -> Image.Image:
    """A copy of a picture with boxes and their names in it, surest on top.

    Args:
        image: path, PIL image or ``uint8`` array ``[H, W, 3]`` RGB.
        boxes: ``[N, 4]`` left, top, right, bottom in pixels; parts outside the picture are not seen, boxes that are
            not finite or wholly outside are left out.
        labels: ``[N]`` class index.
        scores: ``[N]``, written behind the name; None for ground truth.
        classes: names by index; the index itself where unknown.
        width: of lines, in pixels; by default by the picture's size.

    Returns:
        An RGB image of the same size.

    Raises:
        DataError: the picture cannot be read.
    """
    picture = to_image(image).copy()
    line = width if width is not None else max(1, round(sum(picture.size) / 2 * 0.004))
    font = _font(max(12, round(min(picture.size) * 0.022)))
    canvas = ImageDraw.Draw(picture)
    corners = np.asarray(boxes, np.float64).reshape(-1, 4)
    order: Sequence[int] = range(len(corners))
    if scores is not None:
        order = np.argsort(np.asarray(scores), kind="stable").tolist()
    for index in order:
        box = _visible(corners[index], *picture.size)
        if box is None:
            continue
        label = int(labels[index])
        name = str(classes[label]) if 0 <= label < len(classes) else str(label)
        text = name if scores is None else f"{name} {float(scores[index]):.2f}"
        color = class_color(label)
        canvas.rectangle(box, outline=color, width=line)
        _write(canvas, picture.size, box, text, color, font)
    return picture


def draw_detections(image: ImageLike, detections: FoundBoxes, *, classes: Sequence[str] | None = None) -> Image.Image:
    """`draw_boxes` of a result: its boxes, scores and class names."""
    names = getattr(detections, "classes", ()) if classes is None else classes
    return draw_boxes(image, detections.boxes, detections.labels, scores=detections.scores, classes=names)


def _visible(box: npt.NDArray[np.float64], width: int, height: int) -> tuple[int, int, int, int] | None:
    """Pixels of a box inside the picture; None where nothing of it can be seen."""
    if not np.isfinite(box).all():
        return None
    left, top, right, bottom = np.clip(box, 0, [width, height, width, height])
    if right <= left or bottom <= top:
        return None
    x0, y0 = min(int(left), width - 1), min(int(top), height - 1)
    # the last column that a box covers lies before its right edge
    return x0, y0, max(x0, round(float(right)) - 1), max(y0, round(float(bottom)) - 1)


def _write(
    canvas: ImageDraw.ImageDraw,
    size: tuple[int, int],
    box: tuple[int, int, int, int],
    text: str,
    color: Color,
    font: Any,
) -> None:
    """The name on a plate of the box's colour: above the box, within it where there is no room, never cut off."""
    text = _drawable(text, font)
    left, top, right, bottom = font.getbbox(text)
    pad = max(1, round((bottom - top) * 0.2))
    wide, high = int(right - left) + 2 * pad, int(bottom - top) + 2 * pad
    x = max(0, min(box[0], size[0] - wide))
    y = box[1] - high if box[1] >= high else min(box[1], max(0, size[1] - high))
    canvas.rectangle((x, y, x + wide - 1, y + high - 1), fill=color)
    luma = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    ink = (0, 0, 0) if luma > _BRIGHT else (255, 255, 255)
    canvas.text((x + pad - left, y + pad - top), text, fill=ink, font=font)


def _font(size: int) -> Any:
    try:
        return ImageFont.load_default(size)
    except (TypeError, ImportError):  # Pillow before 10.1, or built without FreeType: a bitmap font of one size
        return ImageFont.load_default()


def _drawable(text: str, font: Any) -> str:
    """``text`` as far as the font can write it: the bitmap font knows Latin-1 alone."""
    if isinstance(font, ImageFont.ImageFont):
        return text.encode("latin-1", "replace").decode("latin-1")
    return text
