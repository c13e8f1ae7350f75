"""SSD's extra feature layers, depthwise separable as in SSDLite.

Arxiv 1512.02325, section 2.1; 1801.04381, section 6.2.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from edgevision.models.layers import ConvNormActivation, make_divisible

CHANNELS = (512, 256, 256, 128)


class SSDExtras(nn.Module):
    """The backbone's maps and behind them one per extra layer, each half as large as the one before.

    An extra layer: 1×1 convolution to half of its channels, 3×3 depthwise of stride 2, 1×1.

    Args:
        in_channels: of the backbone's maps.
        width: multiplier of the channels.
        block: not used; other necks have such blocks.
        deploy: likewise.
        extras: channels of the extra layers.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        *,
        width: float,
        block: str,
        deploy: bool,
        extras: Sequence[int] = CHANNELS,
    ) -> None:
        super().__init__()
        widths = [make_divisible(c * width) for c in extras]
        self.channels = (*in_channels, *widths)
        self.extras = nn.ModuleList(
            _extra(before, after) for before, after in zip([in_channels[-1], *widths], widths, strict=False)
        )

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The backbone's maps → these and the extra ones."""
        x, out = maps[-1], list(maps)
        for extra in self.extras:
            x = extra(x)
            out.append(x)
        return tuple(out)


def _extra(in_channels: int, out_channels: int) -> nn.Sequential:
    half = out_channels // 2
    return nn.Sequential(
        ConvNormActivation(in_channels, half, 1, activation=nn.ReLU6),
        ConvNormActivation(half, half, 3, stride=2, groups=half, activation=nn.ReLU6),
        ConvNormActivation(half, out_channels, 1, activation=nn.ReLU6),
    )
