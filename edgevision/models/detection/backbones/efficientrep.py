"""EfficientRep and its CSP form as pyramids: the backbones of YOLOv6. Arxiv 2209.02976, section 2.1, and 2301.05586.

Names of parameters are those of `edgevision.models.efficientrep`, so that a classifier's weights can be taken over.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgevision.models.detection.bep import csp_stage
from edgevision.models.efficientrep import CHANNELS, EfficientRepBackbone, block_builder, scaled_repeats
from edgevision.models.layers import make_divisible


class EfficientRepPyramid(EfficientRepBackbone):
    """Stages of RepVGG or BepC3 blocks; maps at strides 4, 8, 16 and 32.

    Args:
        in_channels: channels of the picture.
        width: multiplier of all channels, on top of ``scale``.
        block: ``repvgg`` or ``qarepvgg``.
        deploy: build the fused form.
        depth: multiplier of the blocks per stage.
        scale: the variant's own multiplier of channels.
        pooling: ``sppf`` or ``csp_sppf``.
        expansion: a `BepC3` in each stage works on this share of the channels, for the larger variants; None for RepVGG
            blocks in a row.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        width: float,
        block: str,
        deploy: bool,
        depth: float,
        scale: float,
        pooling: str,
        expansion: float | None = None,
    ) -> None:
        build = block_builder(block)
        bep = None if expansion is None else csp_stage(build, deploy, expansion)

        def stage(channels: int, count: int) -> list[nn.Module]:
            if bep is not None:
                return [bep(channels, channels, count)]
            return [build(channels, channels, deploy=deploy) for _ in range(count)]

        super().__init__(
            [make_divisible(c * scale * width) for c in CHANNELS],
            scaled_repeats(depth),
            stage,
            in_channels=in_channels,
            build=build,
            deploy=deploy,
            pooling=pooling,
        )

    @property
    def channels(self) -> tuple[int, ...]:
        """Of the maps, as they are now."""
        return self.pyramid_channels

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """float [B, C, H, W] → maps at strides 4, 8, 16 and 32."""
        return self.pyramid(x)
