"""The ground truth of a batch of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgevision.errors import UsageError


@dataclass(frozen=True)
class Targets:
    """The boxes of a batch, every picture padded to as many as the fullest one has.

    Attributes:
        boxes: float ``[B, M, 4]``, left, top, right, bottom in pixels of the network's input; M may be 0.
        labels: int64 ``[B, M]``, 0 to the number of classes − 1.
        valid: bool ``[B, M]``, False where a row is padding.
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor

    def __post_init__(self) -> None:
        shape = tuple(self.boxes.shape)
        if len(shape) != 3 or shape[2] != 4 or not shape[:2] == tuple(self.labels.shape) == tuple(self.valid.shape):
            raise UsageError(
                "targets are boxes [B, M, 4], labels [B, M] and valid [B, M]; these are "
                f"{list(shape)}, {list(self.labels.shape)} and {list(self.valid.shape)}"
            )

    @classmethod
    def of_pictures(cls, boxes: Sequence[np.ndarray | Tensor], labels: Sequence[np.ndarray | Tensor]) -> Targets:
        """Pad what each picture has: boxes ``[N, 4]`` and labels ``[N]``, N differing from picture to picture."""
        if len(boxes) != len(labels) or any(len(some) != len(names) for some, names in zip(boxes, labels, strict=True)):
            raise UsageError("every picture needs as many labels as boxes")
        places = max((len(some) for some in boxes), default=0)
        padded = cls(
            torch.zeros(len(boxes), places, 4),
            torch.zeros(len(boxes), places, dtype=torch.int64),
            torch.zeros(len(boxes), places, dtype=torch.bool),
        )
        for picture, (some, names) in enumerate(zip(boxes, labels, strict=True)):
            if len(some):
                padded.boxes[picture, : len(some)] = torch.as_tensor(some, dtype=torch.float32)
                padded.labels[picture, : len(some)] = torch.as_tensor(names, dtype=torch.int64)
                padded.valid[picture, : len(some)] = True
        return padded

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, pictures: slice) -> Targets:
        """Those of some of the pictures."""
        return Targets(self.boxes[pictures], self.labels[pictures], self.valid[pictures])

    def to(self, device: torch.device | str) -> Targets:
        """The same on a device."""
        return Targets(*(part.to(device, non_blocking=True) for part in (self.boxes, self.labels, self.valid)))

    def learnable(self, device: torch.device) -> Targets:
        """What a criterion works with: float32, on its device, M of 1 or more, and every row a plain number.

        A box without area, or with a coordinate that is no number, is not valid here: nothing can be learned from
        it, and ratios to its sides do not exist.
        """
        boxes, labels, valid = self.boxes.to(device).float(), self.labels.to(device), self.valid.to(device)
        if boxes.shape[1] == 0:
            boxes, labels, valid = (
                boxes.new_zeros(len(boxes), 1, 4),
                labels.new_zeros(len(boxes), 1),
                valid.new_zeros(len(boxes), 1),
            )
        valid = valid & (boxes[..., 2:] > boxes[..., :2]).all(-1) & boxes.isfinite().all(-1)
        return Targets(torch.where(valid[..., None], boxes, 0.0), torch.where(valid, labels, 0), valid)
