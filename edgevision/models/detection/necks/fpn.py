"""Feature pyramid network. Lin et al. 2017, arXiv 1612.03144, section 3."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from edgevision.models.layers import ConvNormActivation, make_divisible


class FPN(nn.Module):
    """Lateral 1×1 convolutions, sums on the way down, a 3×3 convolution on each.

    Args:
        in_channels: of the backbone's maps; the last three are used.
        width: multiplier of ``features``.
        block: not used; other necks have such blocks.
        deploy: likewise.
        features: channels of every map that comes out.
    """

    def __init__(
        self, in_channels: Sequence[int], *, width: float, block: str, deploy: bool, features: int = 128
    ) -> None:
        super().__init__()
        c = make_divisible(features * width)
        self.channels = (c, c, c)
        self.laterals = nn.ModuleList(ConvNormActivation(channels, c, 1) for channels in in_channels[-3:])
        self.smooths = nn.ModuleList(ConvNormActivation(c, c, 3) for _ in range(3))
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Maps at strides (4,) 8, 16 and 32 → maps at strides 8, 16 and 32."""
        p3, p4, p5 = (lateral(x) for lateral, x in zip(self.laterals, maps[-3:], strict=True))
        p4 = p4 + self.upsample(p5)
        p3 = p3 + self.upsample(p4)
        return tuple(smooth(x) for smooth, x in zip(self.smooths, (p3, p4, p5), strict=True))
