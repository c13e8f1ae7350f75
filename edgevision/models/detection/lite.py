"""Depthwise convolutions with h-swish, of which YOLOv6-Lite's neck and head are made."""

from __future__ import annotations

from torch import Tensor, nn

from edgevision.models.layers import ConvNormActivation


class DepthwisePointwise(nn.Module):
    """k×k depthwise and 1×1 convolution, each with batch norm and h-swish."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, *, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = ConvNormActivation(
            in_channels, in_channels, kernel, stride=stride, groups=in_channels, activation=nn.Hardswish
        )
        self.pointwise = ConvNormActivation(in_channels, out_channels, 1, activation=nn.Hardswish)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C', H / stride, W / stride]."""
        out: Tensor = self.pointwise(self.depthwise(x))
        return out
