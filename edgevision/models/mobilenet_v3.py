"""MobileNetV3 small and large: squeeze-and-excitation and h-swish. Howard et al. 2019, arXiv 1905.02244.

State-dict names are torchvision's (``features.4.block.2.fc1.weight`` …), so that its weights load.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from edgevision.models.layers import (
    ConvNormActivation,
    NormLayer,
    fit_strides,
    global_average,
    initialize,
    last_channels,
    make_divisible,
    outputs_at,
    stage_ends,
)


class Bottleneck(NamedTuple):
    """One line of the paper's tables 1 and 2."""

    kernel: int
    expanded: int
    out: int
    excite: bool
    activation: type[nn.Module]
    stride: int


RE, HS = nn.ReLU, nn.Hardswish

# Table 1
LARGE = (
    Bottleneck(3, 16, 16, False, RE, 1),
    Bottleneck(3, 64, 24, False, RE, 2),
    Bottleneck(3, 72, 24, False, RE, 1),
    Bottleneck(5, 72, 40, True, RE, 2),
    Bottleneck(5, 120, 40, True, RE, 1),
    Bottleneck(5, 120, 40, True, RE, 1),
    Bottleneck(3, 240, 80, False, HS, 2),
    Bottleneck(3, 200, 80, False, HS, 1),
    Bottleneck(3, 184, 80, False, HS, 1),
    Bottleneck(3, 184, 80, False, HS, 1),
    Bottleneck(3, 480, 112, True, HS, 1),
    Bottleneck(3, 672, 112, True, HS, 1),
    Bottleneck(5, 672, 160, True, HS, 2),
    Bottleneck(5, 960, 160, True, HS, 1),
    Bottleneck(5, 960, 160, True, HS, 1),
)

# Table 2
SMALL = (
    Bottleneck(3, 16, 16, True, RE, 2),
    Bottleneck(3, 72, 24, False, RE, 2),
    Bottleneck(3, 88, 24, False, RE, 1),
    Bottleneck(5, 96, 40, True, HS, 2),
    Bottleneck(5, 240, 40, True, HS, 1),
    Bottleneck(5, 240, 40, True, HS, 1),
    Bottleneck(5, 120, 48, True, HS, 1),
    Bottleneck(5, 144, 48, True, HS, 1),
    Bottleneck(5, 288, 96, True, HS, 2),
    Bottleneck(5, 576, 96, True, HS, 1),
    Bottleneck(5, 576, 96, True, HS, 1),
)

batch_norm: NormLayer = partial(nn.BatchNorm2d, eps=0.001, momentum=0.01)


class SqueezeExcitation(nn.Module):
    """Channel attention with a hard sigmoid (section 5.3): x · hσ(fc2(ReLU(fc1(mean(x)))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = make_divisible(channels // 4)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.activation = nn.ReLU()
        self.scale_activation = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C, H, W]."""
        scale = self.avgpool(x)  # [B, C, 1, 1]
        scale = self.activation(self.fc1(scale))  # [B, C / 4, 1, 1]
        scale = self.scale_activation(self.fc2(scale))  # [B, C, 1, 1]
        out: Tensor = x * scale
        return out


class InvertedResidual(nn.Module):
    """1×1 expansion, k×k depthwise, squeeze-and-excitation where the table says so, linear 1×1 projection."""

    def __init__(self, in_channels: int, bottleneck: Bottleneck) -> None:
        super().__init__()
        kernel, expanded, out, excite, activation, stride = bottleneck
        self.shortcut = stride == 1 and in_channels == out
        layers: list[nn.Module] = []
        if expanded != in_channels:
            layers.append(ConvNormActivation(in_channels, expanded, 1, norm=batch_norm, activation=activation))
        layers.append(
            ConvNormActivation(
                expanded, expanded, kernel, stride=stride, groups=expanded, norm=batch_norm, activation=activation
            )
        )
        if excite:
            layers.append(SqueezeExcitation(expanded))
        layers.append(ConvNormActivation(expanded, out, 1, norm=batch_norm, activation=None))
        self.block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C', H / stride, W / stride]."""
        out: Tensor = self.block(x)
        return x + out if self.shortcut else out


class MobileNetV3(nn.Module):
    """Stem, inverted residuals, 1×1 convolution, global average, two linear layers.

    Args:
        bottlenecks: `SMALL` or `LARGE`.
        hidden: width of the first linear layer: 1024 or 1280.
        num_classes: outputs.
        in_channels: channels of the picture.
        input_size: height and width in pixels. Up to 64 the stem and the first bottleneck of stride 2 (large:
            24 channels, small: 16 channels) have stride 1 instead, so that 32 × 32 ends at 4 × 4.
        width: multiplier of all channels, the first linear layer's too.
        dropout: probability before the last linear layer.
    """

    def __init__(
        self,
        bottlenecks: Sequence[Bottleneck],
        hidden: int,
        *,
        num_classes: int,
        in_channels: int,
        input_size: int,
        width: float,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        strides = fit_strides([2, *(bottleneck.stride for bottleneck in bottlenecks)], input_size)
        channels = make_divisible(16 * width)
        layers: list[nn.Module] = [
            ConvNormActivation(in_channels, channels, 3, stride=strides[0], norm=batch_norm, activation=HS)
        ]
        for bottleneck, stride in zip(bottlenecks, strides[1:], strict=True):
            scaled = bottleneck._replace(
                expanded=make_divisible(bottleneck.expanded * width),
                out=make_divisible(bottleneck.out * width),
                stride=stride,
            )
            layers.append(InvertedResidual(channels, scaled))
            channels = scaled.out
        last = 6 * channels
        layers.append(ConvNormActivation(channels, last, 1, norm=batch_norm, activation=HS))
        self.stage_ends = stage_ends(strides)
        self.features = nn.Sequential(*layers)
        hidden = make_divisible(hidden * width)
        self.classifier = nn.Sequential(
            nn.Linear(last, hidden), nn.Hardswish(), nn.Dropout(dropout), nn.Linear(hidden, num_classes)
        )
        initialize(self)

    @property
    def pyramid_channels(self) -> tuple[int, ...]:
        """Channels of the maps of `pyramid`, as they are now: pruning changes them."""
        return tuple(last_channels(self.features[index]) for index in self.stage_ends)

    def pyramid(self, x: Tensor) -> tuple[Tensor, ...]:
        """float [B, C, H, W] → maps at strides 4, 8, 16 and 32 for a detector's neck, each its stage's last block."""
        return outputs_at(self.features, self.stage_ends, x)

    def forward(self, x: Tensor) -> Tensor:
        """float [B, C, H, W] → logits [B, num_classes]."""
        x = self.features(x)  # [B, 960 or 576, H / 32, W / 32]
        x = global_average(x)  # [B, 960 or 576]
        logits: Tensor = self.classifier(x)
        return logits


def mobilenet_v3_large(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: int = 224,
    width: float = 1.0,
    dropout: float = 0.2,
) -> MobileNetV3:
    """MobileNetV3-Large (table 1). See `MobileNetV3` for the arguments."""
    return MobileNetV3(
        LARGE,
        1280,
        num_classes=num_classes,
        in_channels=in_channels,
        input_size=input_size,
        width=width,
        dropout=dropout,
    )


def mobilenet_v3_small(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: int = 224,
    width: float = 1.0,
    dropout: float = 0.2,
) -> MobileNetV3:
    """MobileNetV3-Small (table 2). See `MobileNetV3` for the arguments."""
    return MobileNetV3(
        SMALL,
        1024,
        num_classes=num_classes,
        in_channels=in_channels,
        input_size=input_size,
        width=width,
        dropout=dropout,
    )
