"""Task alignment learning, YOLOv6's assigner after the warm-up. Feng et al. 2021 (TOOD), arXiv 2108.07755, 3.2."""

from __future__ import annotations

import torch
from torch import Tensor

from edgevision.training.detection.assigners.assignment import Assignment, claim, largest, rank_bits
from edgevision.training.detection.assigners.points import Points, points_inside
from edgevision.training.detection.losses.iou import pairwise_iou
from edgevision.training.detection.targets import Targets


@torch.no_grad()
def task_aligned(
    logits: Tensor,
    boxes: Tensor,
    points: Points,
    targets: Targets,
    *,
    alpha: float = 1.0,
    beta: float = 6.0,
    topk: int = 13,
) -> Assignment:
    """Each object takes the ``topk`` points inside it that classify and locate it best.

    The alignment of a point with an object is ``t = s^α u^β`` (equation 4): s the probability it gives the object's
    class, u the IoU of its box with the object's. A point that several objects want goes to the one of largest IoU.
    The quality is ``t̂ = t / max t · max u`` (section 3.2.2), the maxima over the points of the same object. A point
    whose box does not meet the object's answers for nothing.

    Args:
        logits: ``[B, L, C]``.
        boxes: ``[B, L, 4]``, predicted, in pixels.
        points: L of them.
        targets: of B pictures.
        alpha: weight of the classification; YOLOv6 has 1.
        beta: weight of the localization; YOLOv6 has 6.
        topk: points per object.
    """
    overlap = pairwise_iou(targets.boxes, boxes)  # [B, M, L]
    label = targets.labels[..., None].expand(-1, -1, logits.shape[1])
    probability = logits.float().sigmoid().transpose(1, 2).gather(1, label)  # [B, M, L]
    aligned = _power(probability, alpha) * _power(overlap, beta)
    aligned = torch.where(points_inside(points, targets), aligned, 0.0)
    candidates = largest(rank_bits(aligned), topk)  # [B, M, k]
    t, u = aligned.gather(2, candidates), overlap.gather(2, candidates)
    matched = claim(candidates, rank_bits(u), t > 0, logits.shape[1])
    return Assignment(matched, _quality(matched, candidates, t, u))


def _quality(matched: Tensor, candidates: Tensor, t: Tensor, u: Tensor) -> Tensor:
    """t̂ of each point: ``[B, L]``; what an object lost to another counts in neither maximum."""
    M = candidates.shape[1]
    owner = matched.gather(1, candidates.flatten(1)).view_as(candidates)
    kept = (t > 0) & (owner == torch.arange(M, device=t.device)[:, None])
    t, u = torch.where(kept, t, 0.0), torch.where(kept, u, 0.0)
    scale = u.amax(-1, keepdim=True) / t.amax(-1, keepdim=True).clamp(min=torch.finfo(t.dtype).tiny)
    quality = t.new_zeros(matched.shape)
    return quality.scatter_reduce(1, candidates.flatten(1), (t * scale).flatten(1), reduce="amax").clamp(max=1.0)


def _power(values: Tensor, exponent: float) -> Tensor:
    if exponent == 1:
        return values
    if exponent == 6:  # ten times as quick as pow
        cubed = values * values * values
        return cubed * cubed
    return values.pow(exponent)
