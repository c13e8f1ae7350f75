"""The backbone of YOLOv6-Lite: ShuffleNet-like units with squeeze-and-excitation and h-swish.

Of the family of ShuffleNetV2 (arXiv 1807.11164) and ESNet (PP-PicoDet, arXiv 2111.00902).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgevision.models.detection.lite import DepthwisePointwise
from edgevision.models.layers import ConvNormActivation, make_divisible
from edgevision.models.mobilenet_v3 import SqueezeExcitation
from edgevision.models.shuffle import Halves, Interleave

# channels of the stem and of the four stages, and units per stage, the one of stride 2 included
CHANNELS = (24, 32, 64, 128, 256)
REPEATS = (1, 3, 7, 3)
# inner channels of a unit, as a share of its stage's
INNER = 0.5


class DownUnit(nn.Module):
    """Stride 2: two branches of half the channels each, then a depthwise and a 1×1 convolution over both."""

    def __init__(self, in_channels: int, inner: int, out_channels: int) -> None:
        super().__init__()
        half, hidden = out_channels // 2, inner // 2
        self.left = nn.Sequential(
            ConvNormActivation(in_channels, in_channels, 3, stride=2, groups=in_channels, activation=None),
            ConvNormActivation(in_channels, half, 1, activation=nn.Hardswish),
        )
        self.right = nn.Sequential(
            ConvNormActivation(in_channels, hidden, 1, activation=nn.Hardswish),
            ConvNormActivation(hidden, hidden, 3, stride=2, groups=hidden, activation=None),
            SqueezeExcitation(hidden),
            ConvNormActivation(hidden, half, 1, activation=nn.Hardswish),
        )
        self.mix = DepthwisePointwise(out_channels, out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C', H / 2, W / 2]."""
        out: Tensor = self.mix(torch.cat([self.left(x), self.right(x)], dim=1))
        return out


class ShuffleUnit(nn.Module):
    """Half of the channels pass, the other half is convolved; then the two are interleaved."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        half = channels // 2
        self.halves = Halves()
        self.interleave = Interleave()
        self.right = nn.Sequential(
            ConvNormActivation(half, inner, 1, activation=nn.Hardswish),
            ConvNormActivation(inner, inner, 3, groups=inner, activation=None),
            SqueezeExcitation(inner),
            ConvNormActivation(inner, half, 1, activation=nn.Hardswish),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C, H, W]."""
        left, right = self.halves(x)
        out: Tensor = self.interleave(torch.cat([left, self.right(right)], dim=1))
        return out


class LiteBackbone(nn.Module):
    """Stem and four stages; maps at strides 8, 16 and 32.

    Args:
        in_channels: channels of the picture.
        width: multiplier of all channels, on top of ``scale``.
        block: not used; the other backbones have such blocks.
        deploy: likewise.
        scale: the variant's own multiplier of channels.
    """

    def __init__(self, *, in_channels: int, width: float, block: str, deploy: bool, scale: float) -> None:
        super().__init__()
        widths = [make_divisible(c * scale * width, 16 if i else 8) for i, c in enumerate(CHANNELS)]
        self.stem = ConvNormActivation(in_channels, widths[0], 3, stride=2, activation=nn.Hardswish)
        stages = []
        for i, repeats in enumerate(REPEATS):
            inner = make_divisible(widths[i + 1] * INNER)
            units = [ShuffleUnit(widths[i + 1], inner) for _ in range(repeats - 1)]
            stages.append(nn.Sequential(DownUnit(widths[i], inner, widths[i + 1]), *units))
        self.stage2, self.stage3, self.stage4, self.stage5 = stages
        self.channels = tuple(widths[-3:])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """float [B, C, H, W] → maps at strides 8, 16 and 32."""
        c3: Tensor = self.stage3(self.stage2(self.stem(x)))
        c4: Tensor = self.stage4(c3)
        c5: Tensor = self.stage5(c4)
        return c3, c4, c5
