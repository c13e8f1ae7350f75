"""YOLOv3's feature pyramid: what a level found goes, upsampled, to the next finer one.

Redmon and Farhadi 2018, arXiv 1804.02767, section 2.3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgevision.models.detection.darknet import darknet_conv
from edgevision.models.layers import make_divisible


class YOLOv3Neck(nn.Module):
    """Maps at strides 8, 16 and 32 → maps at strides 32, 16 and 8, each five convolutions deep.

    Args:
        in_channels: of the backbone's maps; the last three are used.
        width: multiplier of all channels.
        block: not used; other necks have such blocks.
        deploy: likewise.
    """

    def __init__(self, in_channels: Sequence[int], *, width: float, block: str, deploy: bool) -> None:
        super().__init__()
        c3, c4, c5 = in_channels[-3:]
        n5, n4, n3 = (make_divisible(c * width) for c in (512, 256, 128))
        self.level5 = _five(c5, n5)
        self.reduce5 = darknet_conv(n5, n4, 1)
        self.level4 = _five(n4 + c4, n4)
        self.reduce4 = darknet_conv(n4, n3, 1)
        self.level3 = _five(n3 + c3, n3)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.channels = (n5, n4, n3)

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Maps at strides (4,) 8, 16 and 32 → maps at strides 32, 16 and 8."""
        c3, c4, c5 = maps[-3:]
        out5: Tensor = self.level5(c5)
        out4: Tensor = self.level4(torch.cat([self.upsample(self.reduce5(out5)), c4], dim=1))
        out3: Tensor = self.level3(torch.cat([self.upsample(self.reduce4(out4)), c3], dim=1))
        return out5, out4, out3


def _five(in_channels: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        darknet_conv(in_channels, channels, 1),
        darknet_conv(channels, 2 * channels, 3),
        darknet_conv(2 * channels, channels, 1),
        darknet_conv(channels, 2 * channels, 3),
        darknet_conv(2 * channels, channels, 1),
    )


class YOLOv3TinyNeck(nn.Module):
    """Maps at strides 16 and 32 → maps at strides 32 and 16.

    Args: those of `YOLOv3Neck`; of ``in_channels`` the last two are used.
    """

    def __init__(self, in_channels: Sequence[int], *, width: float, block: str, deploy: bool) -> None:
        super().__init__()
        c4, c5 = in_channels[-2:]
        n5, n4 = make_divisible(256 * width), make_divisible(128 * width)
        self.level5 = darknet_conv(c5, n5, 1)
        self.reduce5 = darknet_conv(n5, n4, 1)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.channels = (n5, n4 + c4)

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Maps at strides (… ,) 16 and 32 → maps at strides 32 and 16."""
        c4, c5 = maps[-2:]
        out5: Tensor = self.level5(c5)
        return out5, torch.cat([self.upsample(self.reduce5(out5)), c4], dim=1)
