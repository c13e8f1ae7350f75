"""MobileNetV2: inverted residuals and linear bottlenecks. Sandler et al. 2018, arXiv 1801.04381.

State-dict names are torchvision's (``features.1.conv.0.0.weight`` …), so that its weights load.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgevision.models.layers import (
    ConvNormActivation,
    fit_strides,
    global_average,
    initialize,
    last_channels,
    make_divisible,
    outputs_at,
    stage_ends,
)

# Table 2: expansion t, output channels c, repeats n, stride s of the first of the repeats
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """1×1 expansion by t, 3×3 depthwise, linear 1×1 projection; a shortcut where the shape is kept (section 3.3)."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.shortcut = stride == 1 and in_channels == out_channels
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(ConvNormActivation(in_channels, hidden, 1, activation=nn.ReLU6))
        layers += [
            ConvNormActivation(hidden, hidden, 3, stride=stride, groups=hidden, activation=nn.ReLU6),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C', H / stride, W / stride]."""
        out: Tensor = self.conv(x)
        return x + out if self.shortcut else out


class MobileNetV2(nn.Module):
    """Stem, 17 inverted residuals, 1×1 convolution, global average, linear.

    Args:
        num_classes: outputs.
        in_channels: channels of the picture.
        input_size: height and width in pixels. Up to 64 the stem and the 24-channel stage have stride 1
            instead of 2, so that 32 × 32 ends at 4 × 4.
        width: multiplier of all channels, except that the last convolution never has fewer than 1280.
        dropout: probability before the linear layer.
    """

    def __init__(
        self, *, num_classes: int, in_channels: int, input_size: int, width: float, dropout: float = 0.2
    ) -> None:
        super().__init__()
        strides = fit_strides([2, *(stage[3] for stage in STAGES)], input_size)
        channels = make_divisible(32 * width)
        last = make_divisible(1280 * max(1.0, width))
        layers: list[nn.Module] = [ConvNormActivation(in_channels, channels, 3, stride=strides[0], activation=nn.ReLU6)]
        block_strides = [strides[0]]
        for (expansion, c, repeats, _), stride in zip(STAGES, strides[1:], strict=True):
            out = make_divisible(c * width)
            for repeat in range(repeats):
                layers.append(InvertedResidual(channels, out, stride=stride if repeat == 0 else 1, expansion=expansion))
                block_strides.append(stride if repeat == 0 else 1)
                channels = out
        layers.append(ConvNormActivation(channels, last, 1, activation=nn.ReLU6))
        self.stage_ends = stage_ends(block_strides)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, num_classes))
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
        x = self.features(x)  # [B, 1280, H / 32, W / 32]
        x = global_average(x)  # [B, 1280]
        logits: Tensor = self.classifier(x)
        return logits


def mobilenet_v2(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: int = 224,
    width: float = 1.0,
    dropout: float = 0.2,
) -> MobileNetV2:
    """MobileNetV2. See `MobileNetV2` for the arguments."""
    return MobileNetV2(
        num_classes=num_classes, in_channels=in_channels, input_size=input_size, width=width, dropout=dropout
    )
