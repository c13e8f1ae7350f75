"""What is asked of YOLOv3's head. Redmon & Farhadi 2018, arXiv 1804.02767, sections 2.1 and 2.2."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgevision.training.detection.assigners.best_prior import best_prior
from edgevision.training.detection.criteria.base import Criterion
from edgevision.training.detection.criteria.decoding import AnchorMaps, anchor_maps
from edgevision.training.detection.losses.bce import logistic_loss
from edgevision.training.detection.losses.iou import BOX_LOSSES
from edgevision.training.detection.targets import Targets


class Yolov3Criterion(Criterion):
    """Squared error of the box, logistic classifiers of the objectness and of each class.

    The box's error is half the sum of the squared differences of σ(tx), σ(ty), tw and th, so that its gradient is
    the difference, as the paper has it. Only what answers for an object is asked for box and class. The sums are
    divided by the number of objects of the batch, or of its pictures where those are more: the paper names no
    divisor.

    Args:
        strides: of the head's levels.
        anchors: for each level, width and height of its anchors in pixels.
        box_loss: one of `BOX_LOSSES` in place of the squared error.
        ignore: overlap with an object above which the background is not asked to be background.
    """

    def __init__(
        self,
        strides: Sequence[int],
        anchors: Sequence[Sequence[Sequence[float]]],
        *,
        box_loss: str | None = None,
        ignore: float = 0.5,
    ) -> None:
        self.strides = tuple(strides)
        self.anchors = anchors
        self.box_loss = None if box_loss is None else BOX_LOSSES[box_loss]
        self.ignore = ignore

    @property
    def names(self) -> tuple[str, ...]:
        """``anchors_{s}`` of each level."""
        return tuple(f"anchors_{stride}" for stride in self.strides)

    def parts(self, outputs: dict[str, Tensor], targets: Targets, epoch: int) -> dict[str, Tensor]:
        """``class``, ``box`` and ``objectness``."""
        maps = anchor_maps(outputs, self.strides, self.anchors)
        with torch.no_grad():
            boxes = maps.boxes()
        assignment = best_prior(
            boxes, targets, anchors=self.anchors, strides=self.strides, shapes=maps.shapes, ignore=self.ignore
        )
        positive = assignment.matched >= 0
        picture, place = positive.nonzero(as_tuple=True)  # [P] each
        box = assignment.matched[picture, place]
        count = max(len(place), len(positive), 1)
        objectness = logistic_loss(maps.values[..., 4], positive.float())
        label = targets.labels[picture, box]
        classes = maps.values[picture, place, 5:]  # [P, C]
        one_hot = torch.zeros_like(classes).scatter(1, label[:, None], 1.0)
        return {
            "class": logistic_loss(classes, one_hot).sum() / count,
            "box": self._box(maps, picture, place, targets.boxes[picture, box]) / count,
            "objectness": torch.where(assignment.ignored, 0.0, objectness).sum() / count,
        }

    def _box(self, maps: AnchorMaps, picture: Tensor, place: Tensor, boxes: Tensor) -> Tensor:
        """The sum over the P positives, whose objects have ``boxes`` ``[P, 4]``."""
        if self.box_loss is not None:
            return self.box_loss(maps.boxes_at(picture, place), boxes).sum()
        raw = maps.values[picture, place, :4]
        # outside of the picture an object's centre may be outside of the cell too
        offset = ((boxes[:, :2] + boxes[:, 2:]) / 2 / maps.strides[place, None] - maps.corners[place]).clamp(0, 1)
        scale = ((boxes[:, 2:] - boxes[:, :2]) / maps.anchors[place]).log()
        return ((raw[:, :2].sigmoid() - offset).square().sum() + (raw[:, 2:] - scale).square().sum()) / 2
