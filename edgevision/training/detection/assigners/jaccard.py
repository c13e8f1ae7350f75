"""SSD's matching and its hard negatives. Liu et al. 2016, arXiv 1512.02325, section 2.2."""

from __future__ import annotations

import torch
from torch import Tensor

from edgevision.training.detection.assigners.assignment import claim, largest, rank_bits
from edgevision.training.detection.losses.iou import pairwise_iou
from edgevision.training.detection.targets import Targets


@torch.no_grad()
def jaccard_matching(defaults: Tensor, targets: Targets, *, threshold: float = 0.5) -> Tensor:
    """Each object takes the default box that overlaps it best, and every one that overlaps it by more than 0.5.

    A default box that overlaps several takes the one it overlaps most; one that is the best of an object is kept for
    it, and where it is the best of several, for the one it overlaps most.

    Args:
        defaults: ``[P, 4]``, left, top, right, bottom, in the unit of the targets.
        targets: of B pictures.
        threshold: overlap above which a default box is an object's.

    Returns:
        int64 ``[B, P]``: the index of the box, −1 for the background.
    """
    overlap = pairwise_iou(targets.boxes, defaults)  # [B, M, P], 0 for what is not valid
    best, box = overlap.max(dim=1)  # the first of equal ones
    matched = torch.where(best > threshold, box, -1)
    ranks = rank_bits(overlap)
    own = largest(ranks, 1)  # [B, M, 1]
    met = targets.valid[..., None] & (overlap.gather(2, own) > 0)
    kept = claim(own, ranks.gather(2, own), met, len(defaults))
    return torch.where(kept >= 0, kept, matched)


@torch.no_grad()
def hard_negatives(loss: Tensor, positive: Tensor, *, ratio: int = 3) -> Tensor:
    """The background that is taken for an object most: ``ratio`` times as many as a picture has positives.

    A picture without any gives as many as if it had one, so that what is seen where nothing is costs something (in
    the paper it costs nothing).

    Args:
        loss: ``[B, P]``, 0 or more: what calling each place background costs.
        positive: bool ``[B, P]``.
        ratio: negatives per positive.

    Returns:
        bool ``[B, P]``, False where positive; of equal losses the first ones are taken.
    """
    places = loss.shape[1]
    order = torch.arange(places - 1, -1, -1, device=loss.device)
    keys = torch.where(positive, -1, (rank_bits(loss) << 32) + order)  # no two alike but for the positives
    wanted = ratio * positive.sum(dim=1, keepdim=True).clamp(min=1)
    last = keys.sort(dim=1, descending=True).values.gather(1, (wanted - 1).clamp(max=places - 1))
    return (keys >= last) & ~positive
