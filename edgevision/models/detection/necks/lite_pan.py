"""The neck of YOLOv6-Lite: path aggregation with CSP blocks of depthwise convolutions, and a fourth level above.

Like CSP-PAN of PP-PicoDet (arXiv 2111.00902, section 3.2): all levels have the same channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgevision.models.detection.lite import DepthwisePointwise
from edgevision.models.layers import ConvNormActivation, make_divisible

CHANNELS = 96
KERNEL = 5


class LiteCSP(nn.Module):
    """A 1×1 and a depthwise convolution on half of the channels, the other half goes past."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.inner = nn.Sequential(
            ConvNormActivation(in_channels, half, 1, activation=nn.Hardswish),
            ConvNormActivation(half, half, 1, activation=nn.Hardswish),
            DepthwisePointwise(half, half, KERNEL),
        )
        self.bypass = ConvNormActivation(in_channels, half, 1, activation=nn.Hardswish)
        self.merge = ConvNormActivation(2 * half, out_channels, 1, activation=nn.Hardswish)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C', H, W]."""
        out: Tensor = self.merge(torch.cat([self.inner(x), self.bypass(x)], dim=1))
        return out


class LitePAN(nn.Module):
    """Maps at strides 8, 16 and 32 → maps at strides 8, 16, 32 and 64.

    Args:
        in_channels: of the backbone's maps; the last three are used.
        width: multiplier of the channels, on top of ``scale``.
        block: not used; the other necks have such blocks.
        deploy: likewise.
        scale: the variant's own multiplier of channels.
    """

    def __init__(self, in_channels: Sequence[int], *, width: float, block: str, deploy: bool, scale: float) -> None:
        super().__init__()
        c = make_divisible(CHANNELS * scale * width)
        self.channels = (c,) * 4
        self.reduce3, self.reduce4, self.reduce5 = (
            ConvNormActivation(channels, c, 1, activation=nn.Hardswish) for channels in in_channels[-3:]
        )
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.down4, self.down3 = LiteCSP(2 * c, c), LiteCSP(2 * c, c)
        self.shrink3 = DepthwisePointwise(c, c, KERNEL, stride=2)
        self.up4 = LiteCSP(2 * c, c)
        self.shrink4 = DepthwisePointwise(c, c, KERNEL, stride=2)
        self.up5 = LiteCSP(2 * c, c)
        self.above_top = DepthwisePointwise(c, c, KERNEL, stride=2)
        self.above_out = DepthwisePointwise(c, c, KERNEL, stride=2)

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Maps at strides (4,) 8, 16 and 32 → maps at strides 8, 16, 32 and 64."""
        c3, c4, c5 = maps[-3:]
        top5 = self.reduce5(c5)
        top4 = self.down4(torch.cat([self.upsample(top5), self.reduce4(c4)], dim=1))
        out3: Tensor = self.down3(torch.cat([self.upsample(top4), self.reduce3(c3)], dim=1))
        out4: Tensor = self.up4(torch.cat([self.shrink3(out3), top4], dim=1))
        out5: Tensor = self.up5(torch.cat([self.shrink4(out4), top5], dim=1))
        out6: Tensor = self.above_top(top5) + self.above_out(out5)
        return out3, out4, out5, out6
