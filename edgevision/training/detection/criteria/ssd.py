"""What is asked of SSD's head. Liu et al. 2016, arXiv 1512.02325, section 2.2."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from edgevision.training.detection.assigners.assignment import take
from edgevision.training.detection.assigners.jaccard import hard_negatives, jaccard_matching
from edgevision.training.detection.boxes import around
from edgevision.training.detection.criteria.base import Criterion
from edgevision.training.detection.criteria.decoding import decode_offsets, default_box_maps, encode_offsets
from edgevision.training.detection.losses.iou import BOX_LOSSES
from edgevision.training.detection.losses.smooth_l1 import smooth_l1_loss
from edgevision.training.detection.targets import Targets


class SsdCriterion(Criterion):
    """``(L_conf + L_loc) / N`` (equations 1 to 3): softmax with hard negatives 3:1, smooth L1 of the offsets.

    N is the number of matched default boxes of the batch, 1 or more.

    Args:
        priors: for each level width and height of its default boxes, as shares of the input's.
        variances: factors of the offsets of centres and of sizes.
        stride: pixels of a cell of level 0; gives the size of the input, which the maps of other sizes do not say.
        input_size: height and width of the input where it is this one; for sizes that the stride does not divide.
        box_loss: one of `BOX_LOSSES`, of the decoded boxes, in place of smooth L1.
    """

    def __init__(
        self,
        priors: Sequence[Sequence[Sequence[float]]],
        *,
        variances: Sequence[float] = (0.1, 0.2),
        stride: int = 16,
        input_size: tuple[int, int] | None = None,
        box_loss: str | None = None,
    ) -> None:
        self.priors = priors
        self.variances = tuple(variances)
        self.stride = stride
        self.input_size = input_size
        self.box_loss = None if box_loss is None else BOX_LOSSES[box_loss]

    @property
    def names(self) -> tuple[str, ...]:
        """``scores_{i}`` and ``boxes_{i}`` of each level."""
        return tuple(f"{kind}_{level}" for level in range(len(self.priors)) for kind in ("scores", "boxes"))

    def parts(self, outputs: dict[str, Tensor], targets: Targets, epoch: int) -> dict[str, Tensor]:
        """``class`` and ``box``."""
        logits, offsets, defaults = default_box_maps(outputs, self.priors)
        height, width = self._size(outputs["scores_0"])
        # default boxes are shares of the input, and so the objects have to be
        shares = Targets(
            targets.boxes / targets.boxes.new_tensor((width, height, width, height)), targets.labels, targets.valid
        )
        matched = jaccard_matching(around(defaults[:, :2], defaults[:, 2:] / 2), shares)
        positive = matched >= 0
        count = positive.sum().clamp(min=1)
        picture, place = positive.nonzero(as_tuple=True)  # [P] each
        boxes = shares.boxes[picture, matched[picture, place]]
        return {
            "class": self._class(logits, matched, shares) / count,
            "box": self._box(offsets[picture, place], defaults[place], boxes) / count,
        }

    def _class(self, logits: Tensor, matched: Tensor, targets: Targets) -> Tensor:
        """L_conf: over the positives and the hardest of the background."""
        positive = matched >= 0
        label = torch.where(positive, take(targets.labels, matched) + 1, 0)  # 0 is the background
        entropy = functional.cross_entropy(logits.flatten(0, 1), label.flatten(), reduction="none").view_as(label)
        counted = positive | hard_negatives(entropy, positive)
        return torch.where(counted, entropy, 0.0).sum()

    def _box(self, offsets: Tensor, defaults: Tensor, boxes: Tensor) -> Tensor:
        """L_loc: over P matched default boxes."""
        if self.box_loss is not None:
            return self.box_loss(decode_offsets(offsets, defaults, self.variances), boxes).sum()
        return smooth_l1_loss(offsets, encode_offsets(boxes, defaults, self.variances)).sum()

    def _size(self, level: Tensor) -> tuple[int, int]:
        """Height and width of the input that made level 0."""
        cells = (level.shape[2], level.shape[3])
        if self.input_size is not None and cells == tuple(-(-side // self.stride) for side in self.input_size):
            return self.input_size
        return cells[0] * self.stride, cells[1] * self.stride
