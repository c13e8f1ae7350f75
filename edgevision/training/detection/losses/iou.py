"""Intersection over union, and the box losses made of it.

All take boxes left, top, right, bottom of one unit, broadcast over the leading dimensions, and are safe for boxes
without area, identical ones and ones far apart: where a ratio's denominator vanishes the ratio is 0, and no gradient
is NaN. A box whose right lies left of its left counts as one without area.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from edgevision.training.detection.boxes import centres

# areas and squared lengths below it are none; its square is still a normal float32
_NOTHING = 1e-12
# of the sides whose ratio CIoU takes, in the boxes' unit: it bounds the gradient of the angle
_LEAST_SIDE = 1e-3


def iou(first: Tensor, second: Tensor) -> Tensor:
    """``|A ∩ B| / |A ∪ B|``: ``[..., 4]`` and ``[..., 4]`` → ``[...]`` in [0, 1]."""
    intersection, union = _intersection_and_union(first, second)
    return _ratio(intersection, union)


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """Every box of one set with every one of another: ``[..., N, 4]`` and ``[..., M, 4]`` → ``[..., N, M]``."""
    return iou(first[..., :, None, :], second[..., None, :, :])


def iou_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """``1 − IoU``: ``[..., 4]`` twice → ``[...]`` in [0, 1]; no gradient where the boxes do not meet."""
    return 1 - iou(predicted, target)


def giou_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """``1 − IoU + |C \\ (A ∪ B)| / |C|``, C the smallest box around both. Rezatofighi et al. 2019, arXiv 1902.09630.

    ``[..., 4]`` twice → ``[...]`` in [0, 2]; towards 2 as the boxes move apart.
    """
    intersection, union = _intersection_and_union(predicted, target)
    enclosing = _enclosing_sides(predicted, target).prod(-1)
    return 1 - _ratio(intersection, union) + _ratio((enclosing - union).clamp(min=0), enclosing)


def ciou_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """``1 − IoU + ρ² / c² + α v``. Zheng et al. 2020, arXiv 1911.08287, equations 8 to 11.

    ρ is the distance of the centres, c the diagonal of the smallest box around both,
    ``v = 4/π² (arctan(w'/h') − arctan(w/h))²`` and ``α = v / (1 − IoU + v)``, through which no gradient flows.
    Sides below 0.001 are taken for 0.001 in v.

    ``[..., 4]`` twice → ``[...]`` in [0, 3].
    """
    overlap = iou(predicted, target)
    apart = (centres(predicted) - centres(target)).square().sum(-1)
    diagonal = _enclosing_sides(predicted, target).square().sum(-1)
    w, h = _sides(predicted).clamp(min=_LEAST_SIDE).unbind(-1)
    w_target, h_target = _sides(target).clamp(min=_LEAST_SIDE).unbind(-1)
    v = 4 / math.pi**2 * (torch.atan2(w_target, h_target) - torch.atan2(w, h)).square()
    with torch.no_grad():
        alpha = _ratio(v, 1 - overlap + v)
    return 1 - overlap + _ratio(apart, diagonal) + alpha * v


def siou_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """``1 − IoU + (Δ + Ω) / 2``. Gevorgyan 2022, arXiv 2205.12740, section 2.

    With dx, dy from centre to centre and C_w, C_h the sides of the smallest box around both:

    * angle cost ``Λ = 1 − 2 sin²(arcsin(|dy|/σ) − π/4)``, σ² = dx² + dy², which is ``sin 2α = 2 |dx dy| / σ²``:
      written like that it needs no arcsin, whose gradient has no bound at 1;
    * distance cost ``Δ = Σ_t (1 − e^(−γ ρ_t))``, γ = 2 − Λ, ρ_x = (dx / C_w)², ρ_y = (dy / C_h)²;
    * shape cost ``Ω = Σ_t (1 − e^(−ω_t))⁴``, ω_w = |w − w'| / max(w, w'), ω_h the same of the heights.

    ``[..., 4]`` twice → ``[...]`` in [0, 3].
    """
    apart = centres(predicted) - centres(target)
    squared = apart.square()
    angle = _ratio(2 * apart.prod(-1).abs(), squared.sum(-1))
    enclosing = _enclosing_sides(predicted, target)
    rho = _ratio(squared, enclosing.square())
    distance = (1 - torch.exp((angle - 2)[..., None] * rho)).sum(-1)
    sides, target_sides = _sides(predicted), _sides(target)
    omega = _ratio((sides - target_sides).abs(), torch.maximum(sides, target_sides))
    shape = (1 - torch.exp(-omega)).pow(4).sum(-1)
    return 1 - iou(predicted, target) + (distance + shape) / 2


def inversion(predicted: Tensor, target: Tensor) -> Tensor:
    """How far a predicted box is turned inside out, in sides of its target: 0 for every proper box.

    Such a box has no overlap with anything, and IoU losses no gradient that would turn it back; this one has.
    ``[..., 4]`` twice → ``[...]``, 0 or more.
    """
    inverted = (predicted[..., :2] - predicted[..., 2:]).clamp(min=0)
    return _ratio(inverted, _sides(target)).sum(-1)


BoxLoss = Callable[[Tensor, Tensor], Tensor]

BOX_LOSSES: dict[str, BoxLoss] = {"iou": iou_loss, "giou": giou_loss, "ciou": ciou_loss, "siou": siou_loss}


def _intersection_and_union(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    left, top, right, bottom = first.unbind(-1)
    other_left, other_top, other_right, other_bottom = second.unbind(-1)
    width = torch.minimum(right, other_right) - torch.maximum(left, other_left)
    height = torch.minimum(bottom, other_bottom) - torch.maximum(top, other_top)
    area = _sides(first).prod(-1)
    other_area = _sides(second).prod(-1)
    intersection = width.clamp(min=0) * height.clamp(min=0)
    return intersection, area + other_area - intersection


def _sides(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)


def _enclosing_sides(first: Tensor, second: Tensor) -> Tensor:
    right_bottom = torch.maximum(first[..., 2:], second[..., 2:])
    return (right_bottom - torch.minimum(first[..., :2], second[..., :2])).clamp(min=0)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    # the inner `where` keeps the division away from 0 in the backward pass, too
    exists = whole > _NOTHING
    return torch.where(exists, part / torch.where(exists, whole, 1.0), 0.0)
