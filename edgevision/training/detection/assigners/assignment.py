"""What an assigner says, and the deterministic ranking that all of them stand on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Assignment:
    """Who answers for what.

    Attributes:
        matched: int64 ``[B, L]``, the index of the box that a place answers for, −1 for the background.
        quality: float32 ``[B, L]`` in [0, 1], how sure of its class a place should be; 0 for the background.
    """

    matched: Tensor
    quality: Tensor


def rank_bits(values: Tensor) -> Tensor:
    """int64 that are ordered as the values, which are float and 0 or more: below 2³¹, equal for equal values.

    The bits of a float of no sign, read as an integer, are in the floats' order (IEEE 754).
    """
    # + 0 makes 0 of −0, whose sign bit would make it the least of all
    return (values.float() + 0.0).contiguous().view(torch.int32).to(torch.int64)


def largest(ranks: Tensor, k: int) -> Tensor:
    """Indices of the k largest along the last dimension, best first; of equals the first: ``[..., N]`` → ``[..., k]``.

    ``topk`` leaves open which of equal values it takes, and equal ones are common: in a fresh network every place
    says the same. So the index becomes part of the key.

    Args:
        ranks: int64, absolute values below 2³¹, see `rank_bits`.
        k: how many; fewer come back where there are fewer.
    """
    count = ranks.shape[-1]
    order = torch.arange(count - 1, -1, -1, device=ranks.device)
    keys = (ranks << 32) + order
    return keys.topk(min(k, count), dim=-1).indices


def claim(candidates: Tensor, ranks: Tensor, chosen: Tensor, places: int) -> Tensor:
    """Give each place to the box that ranks it highest; of equals to the first.

    Args:
        candidates: int64 ``[B, M, k]``, places that box m wants.
        ranks: int64 ``[B, M, k]``, absolute values below 2³¹.
        chosen: bool ``[B, M, k]``, False where a candidate is none after all.
        places: how many places there are, L.

    Returns:
        int64 ``[B, L]``, the index of the box, −1 where no box wants the place.
    """
    B, M, _ = candidates.shape
    order = torch.arange(M - 1, -1, -1, device=ranks.device)[:, None]
    nobody = torch.iinfo(torch.int64).min
    keys = torch.where(chosen, (ranks << 32) + order, nobody)
    best = keys.new_full((B, places), nobody).scatter_reduce(1, candidates.flatten(1), keys.flatten(1), reduce="amax")
    return torch.where(best == nobody, -1, M - 1 - (best & 0xFFFFFFFF))


def take(values: Tensor, matched: Tensor) -> Tensor:
    """What each place's box has: ``[B, M, ...]`` and ``[B, L]`` → ``[B, L, ...]``; the first box's for the background.

    Boxes ``[B, M, 4]`` give the box that each place should predict, labels ``[B, M]`` its class.
    """
    picture = torch.arange(len(matched), device=matched.device)[:, None]
    taken: Tensor = values[picture, matched.clamp(min=0)]
    return taken
