"""What is asked of YOLOv6's head. Li et al. 2022, arXiv 2209.02976, sections 2.2 and 2.3; 2023, arXiv 2301.05586."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from edgevision.training.detection.assigners.assignment import Assignment, take
from edgevision.training.detection.assigners.atss import adaptive_selection
from edgevision.training.detection.assigners.points import Points
from edgevision.training.detection.assigners.simota import simplified_optimal_transport
from edgevision.training.detection.assigners.tal import task_aligned
from edgevision.training.detection.criteria.base import Criterion
from edgevision.training.detection.criteria.decoding import AnchorFreeMaps, anchor_free_maps
from edgevision.training.detection.losses.dfl import distribution_focal_loss
from edgevision.training.detection.losses.iou import BOX_LOSSES, inversion
from edgevision.training.detection.losses.varifocal import varifocal_loss
from edgevision.training.detection.targets import Targets

ASSIGNERS: dict[str, Callable[[Tensor, Tensor, Points, Targets], Assignment]] = {
    "tal": task_aligned,
    "simota": simplified_optimal_transport,
    "atss": adaptive_selection,
}

_CLASS_WEIGHT, _BOX_WEIGHT, _DFL_WEIGHT = 1.0, 2.5, 0.5


class AnchorFreeCriterion(Criterion):
    """Varifocal loss of the classes, an IoU loss of the boxes, and where sides are distributions their focal loss.

    All three are divided by the sum of the qualities that the assigner asks for; box and distribution are weighed by
    the quality of their point. Weights 1, 2.5 and 0.5.

    Args:
        strides: of the head's levels.
        reg_max: the largest distance a distribution stands for, in strides; 0 where a side is one number.
        box_loss: one of `BOX_LOSSES`.
        assigner: one of `ASSIGNERS`, after the warm-up.
        warmup_epochs: epochs in which ATSS assigns, by geometry alone.
    """

    def __init__(
        self,
        strides: Sequence[int],
        *,
        reg_max: int = 0,
        box_loss: str = "giou",
        assigner: str = "tal",
        warmup_epochs: int = 4,
    ) -> None:
        self.strides = tuple(strides)
        self.reg_max = reg_max
        self.box_loss = BOX_LOSSES[box_loss]
        self.assigner = ASSIGNERS[assigner]
        self.warmup_epochs = warmup_epochs

    @property
    def names(self) -> tuple[str, ...]:
        """``scores_{s}`` and ``boxes_{s}`` of each level."""
        return tuple(f"{kind}_{stride}" for stride in self.strides for kind in ("scores", "boxes"))

    def parts(self, outputs: dict[str, Tensor], targets: Targets, epoch: int) -> dict[str, Tensor]:
        """``class``, ``box`` and, with distributions, ``dfl``."""
        maps = anchor_free_maps(outputs, self.strides, self.reg_max)
        boxes = maps.boxes()
        assign = adaptive_selection if epoch < self.warmup_epochs else self.assigner
        assignment = assign(maps.logits.detach(), boxes.detach(), maps.points, targets)
        asked = assignment.quality.sum().clamp(min=1)
        parts = {"class": _CLASS_WEIGHT * _class_loss(maps.logits, assignment, targets) / asked}
        picture, point = (assignment.matched >= 0).nonzero(as_tuple=True)  # [P] each
        quality = assignment.quality[picture, point]
        target = targets.boxes[picture, assignment.matched[picture, point]]  # [P, 4]
        predicted = boxes[picture, point]
        misses = self.box_loss(predicted, target) + inversion(predicted, target)
        parts["box"] = _BOX_WEIGHT * (misses * quality).sum() / asked
        if self.reg_max:
            focal = distribution_focal_loss(maps.sides[picture, point], _distances(maps, point, target))  # [P, 4]
            parts["dfl"] = _DFL_WEIGHT * (focal.mean(-1) * quality).sum() / asked
        return parts


def _class_loss(logits: Tensor, assignment: Assignment, targets: Targets) -> Tensor:
    label = take(targets.labels, assignment.matched)[..., None]  # [B, L, 1]
    quality = torch.zeros_like(logits).scatter(2, label, assignment.quality[..., None])
    return varifocal_loss(logits, quality).sum()


def _distances(maps: AnchorFreeMaps, point: Tensor, boxes: Tensor) -> Tensor:
    """From points to the sides of their boxes, in strides: ``[P, 4]``."""
    centre = maps.points.centres[point]
    pixels = torch.cat((centre - boxes[:, :2], boxes[:, 2:] - centre), dim=1)
    return pixels / maps.points.strides[point, None]
