"""SimOTA, YOLOX's assigner. Ge et al. 2021, arXiv 2107.08430, section 2.1; the cost after OTA, arXiv 2103.14259."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from edgevision.training.detection.assigners.assignment import Assignment, claim, largest, rank_bits, take
from edgevision.training.detection.assigners.points import Points, points_inside
from edgevision.training.detection.boxes import centres
from edgevision.training.detection.losses.iou import iou, pairwise_iou
from edgevision.training.detection.targets import Targets

# beyond every other cost: who is in the box or near its centre only, and who is in neither
_UNFIT = 1e5
_NEVER = 1e9


@torch.no_grad()
def simplified_optimal_transport(
    logits: Tensor,
    boxes: Tensor,
    points: Points,
    targets: Targets,
    *,
    topk: int = 10,
    radius: float = 2.5,
    box_weight: float = 3.0,
) -> Assignment:
    """Each object takes the k points of least cost, k being as many as its predictions already overlap it.

    The cost is ``L_cls + λ L_reg`` (equation 1): the cross-entropy of all classes with the object's, and
    ``−log IoU``. Candidates lie inside the box or within ``radius`` strides of its centre; those that are not both
    cost 10⁵ more. k is the sum of an object's ``topk`` largest IoUs, rounded down, 1 or more ("dynamic k"). A point
    that several objects want goes to the one it costs least. The quality is the IoU.

    Args:
        logits: ``[B, L, C]``.
        boxes: ``[B, L, 4]``, predicted, in pixels.
        points: L of them.
        targets: of B pictures.
        topk: how many IoUs make k; no object takes more points.
        radius: of the region around the centre, in strides.
        box_weight: λ.
    """
    L = logits.shape[1]
    inside = points_inside(points, targets)
    central = _near_centre(points, targets, radius)
    overlap = pairwise_iou(targets.boxes, boxes)  # [B, M, L]
    candidate = inside | central
    best = torch.where(candidate, overlap, 0.0).topk(min(topk, L), dim=-1).values
    k = best.sum(-1, keepdim=True).floor().clamp(min=1)  # [B, M, 1]
    cost = _class_cost(logits.float(), targets.labels) - box_weight * overlap.clamp(min=1e-8).log()
    cost = torch.where(inside & central, cost, cost.clamp(max=_UNFIT) + _UNFIT)
    cost = torch.where(candidate, cost, _NEVER)
    ranks = -rank_bits(cost)
    candidates = largest(ranks, topk)  # [B, M, topk]
    first = torch.arange(candidates.shape[-1], device=k.device) < k
    chosen = first & candidate.gather(2, candidates)
    matched = claim(candidates, ranks.gather(2, candidates), chosen, L)
    quality = iou(boxes, take(targets.boxes, matched)).float()
    return Assignment(matched, torch.where(matched >= 0, quality, 0.0))


def _near_centre(points: Points, targets: Targets, radius: float) -> Tensor:
    """Points in the square of ``radius`` strides around a valid box's centre: bool ``[B, M, L]``."""
    middles = centres(targets.boxes)
    reach = points.strides * radius
    x, y = points.centres.unbind(-1)
    near = ((middles[..., :1] - x).abs() < reach) & ((middles[..., 1:] - y).abs() < reach)
    return near & targets.valid[..., None]


def _class_cost(logits: Tensor, labels: Tensor) -> Tensor:
    """``Σ_c BCE(p_c, [c is the label])``: ``[B, L, C]`` and ``[B, M]`` → ``[B, M, L]``.

    The cross-entropy with 0 is softplus(x), and with 1 it is softplus(x) − x: the sum over the classes is the same
    for every object but for the logit of its own class.
    """
    background = functional.softplus(logits).sum(-1)[:, None]  # [B, 1, L]
    own = logits.transpose(1, 2).gather(1, labels[..., None].expand(-1, -1, logits.shape[1]))
    return (background - own).clamp(min=0)  # rounding alone makes it less than 0
