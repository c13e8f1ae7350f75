"""YOLOv3's rule: one prior per object. Redmon & Farhadi 2018, arXiv 1804.02767, section 2.1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgevision.training.detection.assigners.assignment import claim, rank_bits
from edgevision.training.detection.boxes import centres
from edgevision.training.detection.losses.iou import iou, pairwise_iou
from edgevision.training.detection.targets import Targets

# pairs of a prediction and an object whose overlap is computed at once: few enough to stay in a processor's cache,
# and memory does not grow with the fullest picture of the batch
_PAIRS = 1 << 18


@dataclass(frozen=True)
class PriorAssignment:
    """Who answers for what among the N places of an anchor head.

    Attributes:
        matched: int64 ``[B, N]``, the index of the box that a place answers for, −1 for none.
        ignored: bool ``[B, N]``, places that answer for nothing, and are not asked to see nothing either.
    """

    matched: Tensor
    ignored: Tensor


@torch.no_grad()
def best_prior(
    boxes: Tensor,
    targets: Targets,
    *,
    anchors: Sequence[Sequence[Sequence[float]]],
    strides: Sequence[int],
    shapes: Sequence[tuple[int, int]],
    ignore: float = 0.5,
) -> PriorAssignment:
    """Each object takes the one prior, of all scales, whose shape is nearest, in the cell that holds its centre.

    The shapes are compared by IoU, as if both boxes had one centre. Predictions that overlap an object by more than
    ``ignore``, but are not the best, are ignored. A place that two objects want goes to the one it fits better.

    Args:
        boxes: ``[B, N, 4]``, predicted, in pixels; N in the order of levels, anchors, rows, columns.
        targets: of B pictures.
        anchors: for each level width and height of its anchors, in pixels.
        strides: of the levels, in pixels.
        shapes: height and width of the levels' maps.
        ignore: the threshold.
    """
    fit = _shape_iou(targets, boxes.new_tensor([anchor for level in anchors for anchor in level]))  # [B, M, K]
    best, prior = fit.max(dim=-1)  # the first of equal ones
    place = _place(targets, prior, [len(level) for level in anchors], strides, shapes)
    matched = claim(place[..., None], rank_bits(best)[..., None], targets.valid[..., None], boxes.shape[1])
    return PriorAssignment(matched, (_best_overlap(boxes, targets) > ignore) & (matched < 0))


def _shape_iou(targets: Targets, anchors: Tensor) -> Tensor:
    """IoU of boxes and anchors laid on one corner: ``[B, M, K]``."""
    sides = targets.boxes[..., 2:] - targets.boxes[..., :2]
    corner = torch.zeros_like(sides)
    return iou(torch.cat((corner, sides), dim=-1)[:, :, None], torch.cat((torch.zeros_like(anchors), anchors), dim=-1))


def _place(
    targets: Targets, prior: Tensor, counts: Sequence[int], strides: Sequence[int], shapes: Sequence[tuple[int, int]]
) -> Tensor:
    """Index, among all N places, of each box's prior in the cell of its centre: int64 ``[B, M]``."""
    rows = []  # per prior: where its places begin, its stride, its map's height and width
    first = 0
    for count, stride, (height, width) in zip(counts, strides, shapes, strict=True):
        for _ in range(count):
            rows.append((first, stride, height, width))
            first += height * width
    start, stride_of, height_of, width_of = torch.tensor(rows, device=prior.device)[prior].unbind(-1)
    middles = centres(targets.boxes)
    cell = (middles / stride_of[..., None]).floor().to(torch.int64)
    limit = torch.stack((width_of, height_of), dim=-1) - 1
    column, row = torch.minimum(cell.clamp(min=0), limit).unbind(-1)
    return start + row * width_of + column


def _best_overlap(boxes: Tensor, targets: Targets) -> Tensor:
    """The largest IoU of each prediction with an object of its picture: ``[B, N]``."""
    best = boxes.new_zeros(boxes.shape[:2])
    at_once = max(1, _PAIRS // max(1, best.numel()))
    for some in targets.boxes.split(at_once, dim=1):
        best = torch.maximum(best, pairwise_iou(some, boxes).amax(dim=1))
    return best
