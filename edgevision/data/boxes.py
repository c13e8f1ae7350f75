"""Boxes of annotation files brought into their pictures; what is cut and what is left out is counted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# annotators round: a box that leaves its picture by this much is cut without a word
ROUNDING = 1.0


@dataclass
class BoxCheck:
    """Cuts boxes to their picture and counts the bad ones.

    Attributes:
        empty: boxes without area.
        outside: boxes that lie outside their picture.
        clipped: boxes that left their picture by more than a pixel.
    """

    empty: int = 0
    outside: int = 0
    clipped: int = 0

    def fit(self, box: Sequence[float], size: tuple[float, float] | None) -> list[float] | None:
        """The box inside its picture, or None where nothing of it is there.

        Args:
            box: left, top, right, bottom in pixels.
            size: width and height of the picture; None where the annotations do not tell.
        """
        left, top, right, bottom = box
        if right <= left or bottom <= top:
            self.empty += 1
            return None
        if size is None:
            return [left, top, right, bottom]
        width, height = size
        inside = [max(0.0, left), max(0.0, top), min(width, right), min(height, bottom)]
        if inside[2] <= inside[0] or inside[3] <= inside[1]:
            self.outside += 1
            return None
        beyond = max(abs(before - after) for before, after in zip(box, inside, strict=True))
        self.clipped += beyond > ROUNDING
        return inside


def picture_size(width: object, height: object) -> tuple[float, float] | None:
    """Width and height as an annotation file tells them; None where they are missing or no numbers above 0."""
    known = [value for value in (width, height) if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if len(known) != 2 or not all(0 < value < math.inf for value in known):
        return None
    return float(known[0]), float(known[1])
