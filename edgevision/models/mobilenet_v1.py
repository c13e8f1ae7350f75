"""MobileNetV1: depthwise separable convolutions. Howard et al. 2017, arXiv 1704.04861."""

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

# Table 1: output channels and stride of the 13 depthwise separable blocks. The paper prints stride 2 for the last
# one, whose own sizes (7 × 7 in, 7 × 7 out) say 1.
BLOCKS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
    (512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1),
)  # fmt: skip


class DepthwiseSeparable(nn.Module):
    """3×3 depthwise then 1×1 pointwise convolution, each with batch norm and ReLU (figure 3, right)."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.depthwise = ConvNormActivation(in_channels, in_channels, 3, stride=stride, groups=in_channels)
        self.pointwise = ConvNormActivation(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C', H / stride, W / stride]."""
        x = self.depthwise(x)
        out: Tensor = self.pointwise(x)
        return out


class MobileNetV1(nn.Module):
    """Stem, 13 depthwise separable blocks, global average, linear.

    Args:
        num_classes: outputs.
        in_channels: channels of the picture.
        input_size: height and width in pixels. The paper's resolution multiplier ρ is nothing else than this:
            ρ = input_size / 224. Up to 64 the stem and the second block (128 channels) have stride 1 instead
            of 2, so that 32 × 32 ends at 4 × 4.
        width: the paper's width multiplier α.
        dropout: probability before the linear layer.
    """

    def __init__(
        self, *, num_classes: int, in_channels: int, input_size: int, width: float, dropout: float = 0.0
    ) -> None:
        super().__init__()
        channels = [make_divisible(c * width) for c in (32, *(c for c, _ in BLOCKS))]
        strides = fit_strides([2, *(stride for _, stride in BLOCKS)], input_size)
        self.stage_ends = stage_ends(strides)
        self.features = nn.Sequential(
            ConvNormActivation(in_channels, channels[0], 3, stride=strides[0]),
            *(DepthwiseSeparable(channels[i], channels[i + 1], stride=strides[i + 1]) for i in range(len(BLOCKS))),
        )
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(channels[-1], num_classes))
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
        x = self.features(x)  # [B, 1024 α, H / 32, W / 32]
        x = global_average(x)  # [B, 1024 α]
        logits: Tensor = self.classifier(x)
        return logits


def mobilenet_v1(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: int = 224,
    width: float = 1.0,
    dropout: float = 0.0,
) -> MobileNetV1:
    """MobileNetV1; ``width`` is α, ``input_size`` / 224 is ρ. See `MobileNetV1` for the arguments."""
    return MobileNetV1(
        num_classes=num_classes, in_channels=in_channels, input_size=input_size, width=width, dropout=dropout
    )
