"""Channels split in halves and put together in turn: ShuffleNet's shuffle. Ma et al. 2018, arXiv 1807.11164.

They are modules, so that pruning knows which channels they move where (`edgevision.pruning.shuffled`).
"""

from __future__ import annotations

from torch import Tensor, nn


class Halves(nn.Module):
    """[B, C, H, W] → the first and the second half of the channels, [B, C / 2, H, W] each."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        left, right = x.chunk(2, dim=1)
        return left, right


class Interleave(nn.Module):
    """[B, C, H, W] → the channels of its two halves in turn (channel shuffle in two groups)."""

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return interleave(x)


def interleave(x: Tensor) -> Tensor:
    """Channels of the two halves in turn: [B, C, H, W] → [B, C, H, W]."""
    _, channels, height, width = x.shape
    pairs = x.reshape(-1, 2, channels // 2, height, width)
    return pairs.transpose(1, 2).reshape(-1, channels, height, width)
