"""Darknet-53 and the backbone of YOLOv3-tiny. Redmon and Farhadi 2018, arXiv 1804.02767, section 2.4."""

from __future__ import annotations

from torch import Tensor, nn

from edgevision.models.layers import ConvNormActivation, make_divisible

# residual blocks of the five stages (table 1); channels double from 32
REPEATS = (1, 2, 8, 8, 4)
TINY_CHANNELS = (16, 32, 64, 128, 256, 512, 1024)


class LeakyReLU(nn.LeakyReLU):
    """Darknet's slope of 0.1."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__(0.1, inplace)


def darknet_conv(in_channels: int, out_channels: int, kernel: int, *, stride: int = 1) -> ConvNormActivation:
    """Convolution, batch norm, leaky ReLU."""
    return ConvNormActivation(in_channels, out_channels, kernel, stride=stride, activation=LeakyReLU)


class Residual(nn.Module):
    """1×1 to half of the channels, 3×3 back, and a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(darknet_conv(channels, channels // 2, 1), darknet_conv(channels // 2, channels, 3))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C, H, W]."""
        out: Tensor = x + self.convs(x)
        return out


class Darknet53(nn.Module):
    """52 convolutions; maps at strides 8, 16 and 32.

    Args:
        in_channels: channels of the picture.
        width: multiplier of all channels.
        block: not used; the other backbones have such blocks.
        deploy: likewise.
    """

    def __init__(self, *, in_channels: int, width: float, block: str, deploy: bool) -> None:
        super().__init__()
        widths = [make_divisible(32 * 2**i * width) for i in range(len(REPEATS) + 1)]
        self.stem = darknet_conv(in_channels, widths[0], 3)
        self.stages = nn.ModuleList(
            nn.Sequential(
                darknet_conv(widths[i], widths[i + 1], 3, stride=2), *(Residual(widths[i + 1]) for _ in range(count))
            )
            for i, count in enumerate(REPEATS)
        )
        self.channels = tuple(widths[-3:])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """float [B, C, H, W] → maps at strides 8, 16 and 32 with 256, 512 and 1024 channels."""
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return tuple(maps[-3:])


class StillPool(nn.Module):
    """2×2 max pooling at stride 1 that keeps the size: beyond the right and lower edge the edge is repeated.

    That is the maximum of what there is, as Darknet takes it, in ops that every engine has.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pad = nn.ReplicationPad2d((0, 1, 0, 1))
        self.pool = nn.MaxPool2d(2, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C, H, W]."""
        out: Tensor = self.pool(self.pad(x))
        return out


class DarknetTiny(nn.Module):
    """Seven convolutions with max pooling between them; maps at strides 16 and 32.

    Args: those of `Darknet53`.
    """

    def __init__(self, *, in_channels: int, width: float, block: str, deploy: bool) -> None:
        super().__init__()
        widths = [in_channels, *(make_divisible(c * width) for c in TINY_CHANNELS)]
        convs = [darknet_conv(widths[i], widths[i + 1], 3) for i in range(len(TINY_CHANNELS))]
        pooled = [layer for conv in convs[:4] for layer in (conv, nn.MaxPool2d(2))]
        self.stage4 = nn.Sequential(*pooled, convs[4])
        self.stage5 = nn.Sequential(nn.MaxPool2d(2), convs[5], StillPool(), convs[6])
        self.channels = (widths[5], widths[7])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """float [B, C, H, W] → maps at strides 16 and 32 with 256 and 1024 channels."""
        c4: Tensor = self.stage4(x)
        c5: Tensor = self.stage5(c4)
        return c4, c5
