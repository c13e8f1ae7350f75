"""MobileNets as the backbone of SSD-Lite: the maps that the MobileNet papers name for it.

MobileNetV2 (arXiv 1801.04381, section 6.2) and V3 (arXiv 1905.02244, section 6.3): the expansion of the block that
goes to stride 32, while still at stride 16, and the last layer. V1: the last map at stride 16, and the last layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from edgevision.errors import UsageError
from edgevision.models import MODELS
from edgevision.models.layers import SMALL_IMAGE, last_channels


class MobileNetSSD(nn.Module):
    """Maps at strides 16 and 32.

    Args:
        features: layers of a MobileNet, whose names they keep.
        last_block: index of the block that goes to stride 32.
    """

    def __init__(self, features: nn.Sequential, last_block: int) -> None:
        super().__init__()
        self.features = features
        self.last_block = last_block

    @property
    def channels(self) -> tuple[int, ...]:
        """Of the two maps, as they are now."""
        parts = self._inner()
        before = self.features[self.last_block - 1] if parts is None else parts[0]
        return last_channels(before), last_channels(self.features[-1])

    def _inner(self) -> nn.Sequential | None:
        """Layers of the block that goes to stride 32; None where it has no expansion (V1)."""
        block = self.features[self.last_block]
        return cast("nn.Sequential | None", getattr(block, "conv", None) or getattr(block, "block", None))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """float [B, C, H, W] → maps at strides 16 and 32."""
        layers = list(self.features)
        for layer in layers[: self.last_block]:
            x = layer(x)
        parts = self._inner()
        if parts is None:
            c4, x = x, layers[self.last_block](x)
        else:
            # the block has no shortcut: it changes the size
            c4 = x = parts[0](x)
            for part in list(parts)[1:]:
                x = part(x)
        for layer in layers[self.last_block + 1 :]:
            x = layer(x)
        return c4, x


def mobilenet_ssd(*, in_channels: int, width: float, block: str, deploy: bool, network: str) -> MobileNetSSD:
    """The backbone of the MobileNet named ``network``; ``block`` and ``deploy`` are those of other backbones.

    Raises:
        UsageError: it is no MobileNet.
    """
    if network not in MODELS or not network.startswith("mobilenet"):
        raise UsageError(f"mobilenet_ssd takes a MobileNet of the zoo; got {network!r}")
    # above the size of the small-image stem, whose strides are others
    model = MODELS.resolve(network)(num_classes=1, in_channels=in_channels, input_size=SMALL_IMAGE + 1, width=width)
    ends = cast("Sequence[int]", model.stage_ends)
    return MobileNetSSD(model.features, ends[-2] + 1)
