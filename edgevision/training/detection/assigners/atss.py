"""Adaptive training sample selection, the warm-up's assigner. Zhang et al. 2020, arXiv 1912.02424, algorithm 1."""

from __future__ import annotations

import torch
from torch import Tensor

from edgevision.training.detection.assigners.assignment import Assignment, claim, largest, rank_bits, take
from edgevision.training.detection.assigners.points import Points, points_inside
from edgevision.training.detection.boxes import around, centres
from edgevision.training.detection.losses.iou import iou
from edgevision.training.detection.targets import Targets

# what a point is asked for at least: the box loss is weighed by the quality, and a box that does not meet its
# object yet has to be drawn there
_LEAST_QUALITY = 0.1


@torch.no_grad()
def adaptive_selection(
    logits: Tensor,
    boxes: Tensor,
    points: Points,
    targets: Targets,
    *,
    topk: int = 9,
    anchor_size: float = 5.0,
) -> Assignment:
    """Each object takes, of its nearest points, those whose anchors fit it well in comparison.

    1. Candidates are the ``topk`` points of each level that are nearest to the object's centre.
    2. A candidate's anchor is the square of ``anchor_size`` strides around it; the threshold is mean plus standard
       deviation of the IoUs of an object's candidates with it.
    3. Those at or above the threshold whose point is inside the object answer for it; a point that several objects
       want goes to the one of largest IoU. A box that holds no point gets its nearest one, whatever the threshold.

    It looks at geometry alone, so it works while the predictions are still noise. The quality is the IoU of the
    predicted box with the object's, as in YOLOv6, 0.1 or more.

    Args:
        logits: ``[B, L, C]``; not looked at.
        boxes: ``[B, L, 4]``, predicted, in pixels.
        points: L of them.
        targets: of B pictures.
        topk: candidates per object and level.
        anchor_size: side of an anchor in strides; 8 in the paper, 5 in YOLOv6.
    """
    candidates = _nearest(points, targets, topk)  # [B, M, K]
    inside = points_inside(points, targets).gather(2, candidates)
    half = points.strides[:, None] * (anchor_size / 2)
    anchors = around(points.centres, half)  # [L, 4]
    fit = iou(anchors[candidates], targets.boxes[:, :, None])  # [B, M, K]
    threshold = fit.mean(-1, keepdim=True)
    if fit.shape[-1] > 1:
        threshold = threshold + fit.std(-1, keepdim=True)
    chosen = inside & (fit >= threshold)
    # a small box's only point may be below the threshold
    chosen = chosen | (inside & ~chosen.any(-1, keepdim=True))
    matched = claim(candidates, rank_bits(fit), chosen, points.centres.shape[0])
    quality = iou(boxes, take(targets.boxes, matched)).float().clamp(min=_LEAST_QUALITY)
    return Assignment(matched, torch.where(matched >= 0, quality, 0.0))


def _nearest(points: Points, targets: Targets, topk: int) -> Tensor:
    """Indices of the nearest points of every level: int64 ``[B, M, K]``."""
    middles = centres(targets.boxes)  # [B, M, 2]
    x, y = points.centres.unbind(-1)
    distance = (middles[..., :1] - x).square() + (middles[..., 1:] - y).square()  # [B, M, L]
    nearest, first = [], 0
    for count in points.counts:
        nearest.append(first + largest(-rank_bits(distance[..., first : first + count]), topk))
        first += count
    return torch.cat(nearest, dim=-1)
