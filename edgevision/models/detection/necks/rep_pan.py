"""Rep-PAN and RepBi-PAN: YOLOv6's path aggregation of re-parameterizable stages.

Rep-PAN: arXiv 2209.02976, section 2.1. RepBi-PAN with its Bi-directional Concatenation: arXiv 2301.05586, section 2.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgevision.models.detection.bep import Stage, csp_stage, rep_stage
from edgevision.models.efficientrep import block_builder
from edgevision.models.layers import ConvNormActivation, make_divisible

# channels of the two reductions on the way down, of the two stages on the way up, and repeats of every stage
CHANNELS = (256, 128, 256, 512)
REPEATS = 12


class _PathAggregation(nn.Module):
    """What both have in common: two stages down with what `_fuse` joins, two stages up, each after a convolution.

    Args:
        in_channels: of the backbone's maps; the last three are those at strides 8, 16 and 32.
        width: multiplier of all channels, on top of ``scale``.
        block: ``repvgg`` or ``qarepvgg``.
        deploy: build the fused form.
        depth: multiplier of the blocks per stage.
        scale: the variant's own multiplier of channels.
        expansion: of `BepC3` stages; None: RepVGG blocks in a row.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        *,
        width: float,
        block: str,
        deploy: bool,
        depth: float,
        scale: float,
        expansion: float | None = None,
    ) -> None:
        super().__init__()
        build = block_builder(block)
        stage: Stage = rep_stage(build, deploy) if expansion is None else csp_stage(build, deploy, expansion)
        repeats = max(1, round(REPEATS * depth))
        p5, p4, n4, n5 = (make_divisible(c * scale * width) for c in CHANNELS)
        self.channels = (p4, n4, n5)
        self.reduce5 = ConvNormActivation(in_channels[-1], p5, 1)
        self.join4, joined4 = self._joint(in_channels[:-1], p5)
        self.down4 = stage(joined4, p5, repeats)
        self.reduce4 = ConvNormActivation(p5, p4, 1)
        self.join3, joined3 = self._joint(in_channels[:-2], p4)
        self.down3 = stage(joined3, p4, repeats)
        self.shrink3 = ConvNormActivation(p4, p4, 3, stride=2)
        self.up4 = stage(2 * p4, n4, repeats)
        self.shrink4 = ConvNormActivation(n4, n4, 3, stride=2)
        self.up5 = stage(p5 + n4, n5, repeats)

    def _joint(self, in_channels: Sequence[int], channels: int) -> tuple[nn.Module, int]:
        """What joins the map from above with those of the backbone at its stride (last) and below; its channels."""
        raise NotImplementedError

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Maps at strides (4, 8, 16,) 32 → maps at strides 8, 16 and 32."""
        top5 = self.reduce5(maps[-1])  # [B, p5, H / 32, W / 32]
        top4 = self.reduce4(self.down4(self.join4(top5, maps[:-1])))  # [B, p4, H / 16, W / 16]
        out3: Tensor = self.down3(self.join3(top4, maps[:-2]))  # [B, p4, H / 8, W / 8]
        out4: Tensor = self.up4(torch.cat([self.shrink3(out3), top4], dim=1))  # [B, n4, H / 16, W / 16]
        out5: Tensor = self.up5(torch.cat([self.shrink4(out4), top5], dim=1))  # [B, n5, H / 32, W / 32]
        return out3, out4, out5


class UpsampleConcat(nn.Module):
    """Transposed convolution of the map from above, beside the backbone's map of that stride."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, stride=2)

    def forward(self, above: Tensor, maps: tuple[Tensor, ...]) -> Tensor:
        """[B, C, H / 2, W / 2] and maps, of which the last is [B, K, H, W] → [B, C + K, H, W]."""
        return torch.cat([self.upsample(above), maps[-1]], dim=1)


class BiDirectionalConcat(nn.Module):
    """BiC: the map from above, the backbone's of that stride and the one below it, as three equal parts."""

    def __init__(self, here: int, below: int, channels: int) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.here = ConvNormActivation(here, channels, 1)
        self.below = ConvNormActivation(below, channels, 1)
        self.downsample = ConvNormActivation(channels, channels, 3, stride=2)
        self.merge = ConvNormActivation(3 * channels, channels, 1)

    def forward(self, above: Tensor, maps: tuple[Tensor, ...]) -> Tensor:
        """[B, C, H / 2, W / 2] and maps, of which the last two are at strides 1/2 and 1 of it → [B, C, H, W]."""
        below = self.downsample(self.below(maps[-2]))
        out: Tensor = self.merge(torch.cat([self.upsample(above), self.here(maps[-1]), below], dim=1))
        return out


class RepPAN(_PathAggregation):
    """Joins by `UpsampleConcat`. Arguments: those of `_PathAggregation`."""

    def _joint(self, in_channels: Sequence[int], channels: int) -> tuple[nn.Module, int]:
        return UpsampleConcat(channels), channels + in_channels[-1]


class RepBiPAN(_PathAggregation):
    """Joins by `BiDirectionalConcat`; needs the backbone's map at stride 4 too."""

    def _joint(self, in_channels: Sequence[int], channels: int) -> tuple[nn.Module, int]:
        return BiDirectionalConcat(in_channels[-1], in_channels[-2], channels), channels
