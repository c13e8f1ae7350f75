"""`Candidates`: what a decoder finds in one picture, before suppression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgevision.errors import UsageError


@dataclass(frozen=True, eq=False)
class Candidates:
    """Boxes of one picture with their scores, in any order.

    Attributes:
        boxes: float32 ``[K, 4]`` xyxy, in pixels of the network's input.
        scores: float32 ``[K]``, 0..1.
        labels: int64 ``[K]``, class index.

    Raises:
        UsageError: lengths that differ.
    """

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        object.__setattr__(self, "boxes", np.asarray(self.boxes, np.float32))
        object.__setattr__(self, "scores", np.asarray(self.scores, np.float32))
        object.__setattr__(self, "labels", np.asarray(self.labels, np.int64))
        count = len(self.scores) if self.scores.ndim == 1 else -1
        if self.boxes.shape != (count, 4) or self.labels.shape != (count,):
            raise UsageError(
                f"candidates are boxes [K, 4], scores [K] and labels [K]; got {list(self.boxes.shape)}, "
                f"{list(self.scores.shape)} and {list(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.scores)

    def best(self, count: int) -> Candidates:
        """The ``count`` with the highest scores, in any order."""
        if len(self) <= count:
            return self
        kept = np.argpartition(-self.scores, count - 1)[:count]
        return Candidates(self.boxes[kept], self.scores[kept], self.labels[kept])

    @classmethod
    def join(cls, parts: Sequence[Candidates]) -> Candidates:
        """Those of all ``parts``, in order."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            np.concatenate([part.boxes for part in parts]),
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.labels for part in parts]),
        )
