"""`Detections`: what was found in one picture, in its own pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL import Image

    from edgevision.images import ImageLike


@dataclass(frozen=True, eq=False)
class Detections:
    """Objects of one picture, best first.

    Attributes:
        boxes: float32 ``[N, 4]``: left, top, right, bottom in pixels of the picture as it is seen (upright), within it.
        scores: float32 ``[N]``, 0..1, falling.
        labels: int64 ``[N]``, class index.
        classes: names by index; empty where unknown.
    """

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> tuple[str, ...]:
        """Class name of every object, or its index where names are unknown."""
        return tuple(self.classes[label] if label < len(self.classes) else str(label) for label in self.labels.tolist())

    def above(self, score: float) -> Detections:
        """Those with a score above this one."""
        kept = self.scores > score
        return Detections(self.boxes[kept], self.scores[kept], self.labels[kept], self.classes)

    def to_dict(self, k: int | None = None) -> dict[str, Any]:
        """Plain values, as JSON takes them: the best ``k`` objects, or all of them."""
        rows = zip(self.names, self.labels.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True)
        objects = [
            {"name": name, "label": label, "score": score, "box": box} for name, label, score, box in list(rows)[:k]
        ]
        return {"objects": objects}

    def plot(self, image: ImageLike) -> Image.Image:
        """The picture with boxes, names and scores drawn on it.

        Args:
            image: the picture these were found in; it is not changed.
        """
        # here: a device that draws nothing loads no fonts
        from edgevision.detection.visualize import draw_detections

        return draw_detections(image, self)
