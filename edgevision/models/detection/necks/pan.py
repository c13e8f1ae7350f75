"""Path aggregation network. Liu et al. 2018, arXiv 1803.01534, section 3.1."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from edgevision.models.detection.necks.fpn import FPN
from edgevision.models.layers import ConvNormActivation


class PAN(nn.Module):
    """An `FPN`, and a way up again: a convolution of stride 2, a sum, a 3×3 convolution.

    Args: those of `FPN`.
    """

    def __init__(
        self, in_channels: Sequence[int], *, width: float, block: str, deploy: bool, features: int = 128
    ) -> None:
        super().__init__()
        self.down = FPN(in_channels, width=width, block=block, deploy=deploy, features=features)
        self.channels = self.down.channels
        c = self.channels[0]
        self.shrinks = nn.ModuleList(ConvNormActivation(c, c, 3, stride=2) for _ in range(2))
        self.smooths = nn.ModuleList(ConvNormActivation(c, c, 3) for _ in range(2))

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Maps at strides (4,) 8, 16 and 32 → maps at strides 8, 16 and 32."""
        p3, p4, p5 = self.down(maps)
        n4: Tensor = self.smooths[0](self.shrinks[0](p3) + p4)
        n5: Tensor = self.smooths[1](self.shrinks[1](n4) + p5)
        return p3, n4, n5
