"""Stages of YOLOv6: RepVGG blocks in a row, and BepC3, its CSP block of them. Arxiv 2301.05586 and 2209.02976."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from edgevision.models.layers import ConvNormActivation
from edgevision.models.repvgg import BlockBuilder

# channels in, channels out, repeats → a stage at stride 1
Stage = Callable[[int, int, int], nn.Module]


class RepBottleneck(nn.Module):
    """Two RepVGG blocks with a shortcut around them, scaled by a learned factor."""

    def __init__(self, channels: int, *, build: BlockBuilder, deploy: bool) -> None:
        super().__init__()
        self.first = build(channels, channels, deploy=deploy)
        self.second = build(channels, channels, deploy=deploy)
        self.alpha = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C, H, W]."""
        out: Tensor = self.second(self.first(x)) + self.alpha * x
        return out


class BepC3(nn.Module):
    """Bottlenecks on one part of the channels, a 1×1 convolution past them, both merged.

    Args:
        in_channels: C.
        out_channels: C'.
        repeats: RepVGG blocks, two to a bottleneck.
        expansion: share of C' that the bottlenecks work on.
        build: the block.
        deploy: build the fused form.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        repeats: int,
        *,
        expansion: float,
        build: BlockBuilder,
        deploy: bool,
    ) -> None:
        super().__init__()
        hidden = max(1, int(out_channels * expansion))
        self.reduce = ConvNormActivation(in_channels, hidden, 1)
        self.bottlenecks = nn.Sequential(
            *(RepBottleneck(hidden, build=build, deploy=deploy) for _ in range(max(1, repeats // 2)))
        )
        self.bypass = ConvNormActivation(in_channels, hidden, 1)
        self.merge = ConvNormActivation(2 * hidden, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C', H, W]."""
        inner = self.bottlenecks(self.reduce(x))
        out: Tensor = self.merge(torch.cat([inner, self.bypass(x)], dim=1))
        return out


def rep_stage(build: BlockBuilder, deploy: bool) -> Stage:
    """RepVGG blocks in a row; the first of them changes the channels."""

    def stage(in_channels: int, out_channels: int, repeats: int) -> nn.Module:
        widths = [in_channels, *[out_channels] * repeats]
        return nn.Sequential(*(build(widths[i], widths[i + 1], deploy=deploy) for i in range(repeats)))

    return stage


def csp_stage(build: BlockBuilder, deploy: bool, expansion: float) -> Stage:
    """`BepC3` blocks."""

    def stage(in_channels: int, out_channels: int, repeats: int) -> nn.Module:
        return BepC3(in_channels, out_channels, repeats, expansion=expansion, build=build, deploy=deploy)

    return stage
