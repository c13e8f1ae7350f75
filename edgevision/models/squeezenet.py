"""SqueezeNet 1.0, 1.1 and 1.0 with simple bypass. Iandola et al. 2016, arXiv 1602.07360.

1.1 is the authors' later release: the same accuracy at 2.4 times fewer multiply-adds. State-dict names are
torchvision's (``features.3.squeeze.weight`` …), so that its weights load.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgevision.models.layers import SMALL_IMAGE, make_divisible

POOL = None

# Squeeze channels of the Fire modules in order; each half of a module's output has four times as many (section 3.3)
LAYOUT_1_0 = (POOL, 16, 16, 32, POOL, 32, 48, 48, 64, POOL, 64)
LAYOUT_1_1 = (POOL, 16, 16, POOL, 32, 32, POOL, 48, 48, 64, 64)

# Section 6: simple bypass around fire3, fire5, fire7 and fire9; the stem counts as layer 1
BYPASSED = (3, 5, 7, 9)


class Fire(nn.Module):
    """1×1 squeeze, then 1×1 and 3×3 expansions side by side (figure 1); with ``bypass`` the input is added."""

    def __init__(self, in_channels: int, squeeze: int, expand: int, *, bypass: bool = False) -> None:
        super().__init__()
        self.bypass = bypass
        self.squeeze = nn.Conv2d(in_channels, squeeze, 1)
        self.squeeze_activation = nn.ReLU(inplace=True)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand1x1_activation = nn.ReLU(inplace=True)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)
        self.expand3x3_activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, 2 · expand, H, W]."""
        squeezed = self.squeeze_activation(self.squeeze(x))  # [B, squeeze, H, W]
        left = self.expand1x1_activation(self.expand1x1(squeezed))
        right = self.expand3x3_activation(self.expand3x3(squeezed))
        out = torch.cat([left, right], dim=1)
        return x + out if self.bypass else out


class SqueezeNet(nn.Module):
    """Stem, eight Fire modules with three max pools between, 1×1 convolution to the classes, global average.

    Args:
        layout: `LAYOUT_1_0` or `LAYOUT_1_1`.
        stem: channels and kernel size of the first convolution.
        bypass: add the input of fire3, fire5, fire7 and fire9 to their output.
        num_classes: outputs.
        in_channels: channels of the picture.
        input_size: height and width in pixels. Up to 64 the first convolution is 3×3 with stride 1 and padding
            1 (instead of stride 2 without padding); the three pools stay, so that 32 × 32 ends at 4 × 4.
        width: multiplier of all channels.
        dropout: probability before the last convolution.
    """

    def __init__(
        self,
        layout: Sequence[int | None],
        stem: tuple[int, int],
        *,
        bypass: bool = False,
        num_classes: int,
        in_channels: int,
        input_size: int,
        width: float,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        channels, kernel = make_divisible(stem[0] * width), stem[1]
        if input_size <= SMALL_IMAGE:
            first = nn.Conv2d(in_channels, channels, 3, stride=1, padding=1)
        else:
            first = nn.Conv2d(in_channels, channels, kernel, stride=2)
        layers: list[nn.Module] = [first, nn.ReLU(inplace=True)]
        fire = 1
        for entry in layout:
            if entry is None:
                layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
                continue
            fire += 1
            squeeze, expand = make_divisible(entry * width), make_divisible(4 * entry * width)
            layers.append(Fire(channels, squeeze, expand, bypass=bypass and fire in BYPASSED))
            channels = 2 * expand
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Conv2d(channels, num_classes, 1),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
        )
        self._initialize()

    def forward(self, x: Tensor) -> Tensor:
        """float [B, C, H, W] → logits [B, num_classes], none below 0: the paper's last convolution has a ReLU."""
        x = self.features(x)  # [B, 512, H / 16, W / 16]
        x = self.classifier(x)  # [B, num_classes, 1, 1]
        return x.flatten(1)

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # a small last layer, or its ReLU starts with classes that never fire
                if module is self.classifier[1]:
                    nn.init.normal_(module.weight, 0.0, 0.01)
                else:
                    nn.init.kaiming_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def squeezenet1_0(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: int = 224,
    width: float = 1.0,
    dropout: float = 0.5,
) -> SqueezeNet:
    """SqueezeNet 1.0 (table 1). See `SqueezeNet` for the arguments."""
    return SqueezeNet(
        LAYOUT_1_0,
        (96, 7),
        num_classes=num_classes,
        in_channels=in_channels,
        input_size=input_size,
        width=width,
        dropout=dropout,
    )


def squeezenet1_0_bypass(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: int = 224,
    width: float = 1.0,
    dropout: float = 0.5,
) -> SqueezeNet:
    """SqueezeNet 1.0 with simple bypass (figure 2, middle): the same parameters, higher accuracy (table 3)."""
    return SqueezeNet(
        LAYOUT_1_0,
        (96, 7),
        bypass=True,
        num_classes=num_classes,
        in_channels=in_channels,
        input_size=input_size,
        width=width,
        dropout=dropout,
    )


def squeezenet1_1(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: int = 224,
    width: float = 1.0,
    dropout: float = 0.5,
) -> SqueezeNet:
    """SqueezeNet 1.1: 3×3 stem, pools moved forward. See `SqueezeNet` for the arguments."""
    return SqueezeNet(
        LAYOUT_1_1,
        (64, 3),
        num_classes=num_classes,
        in_channels=in_channels,
        input_size=input_size,
        width=width,
        dropout=dropout,
    )
