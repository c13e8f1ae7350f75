"""EfficientRep: the RepVGG-style backbone of YOLOv6 for small models, here also with a classifier on top.

Li et al. 2022, arXiv 2209.02976 (YOLOv6); Weng et al. 2023, arXiv 2302.00386 (EfficientRep).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from edgevision.errors import UsageError
from edgevision.models.layers import (
    ConvNormActivation,
    fit_strides,
    global_average,
    initialize,
    last_channels,
    make_divisible,
)
from edgevision.models.qarepvgg import QARepVGGBlock
from edgevision.models.repvgg import BlockBuilder, RepVGGBlock
from edgevision.registry import unknown_name

# channels of the stem and of stages 2 to 5, and RepVGG blocks after the downsampling one of stages 2 to 5, both
# before the multipliers of a size
CHANNELS = (64, 128, 256, 512, 1024)
REPEATS = (6, 12, 18, 6)

# size → depth and width multiplier
MULTIPLIERS = {"n": (0.33, 0.25), "s": (0.33, 0.50)}

BLOCKS: dict[str, BlockBuilder] = {"repvgg": RepVGGBlock, "qarepvgg": QARepVGGBlock}


# blocks of the channels of a stage, as many as its repeats, after the block that downsamples
StageBuilder = Callable[[int, int], Sequence[nn.Module]]


class SimplifiedSPPF(nn.Module):
    """Spatial pyramid pooling with ReLU: three 5×5 max pools one after the other see 5, 9 and 13 pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = ConvNormActivation(channels, channels // 2, 1)
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)
        self.merge = ConvNormActivation(4 * (channels // 2), channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C, H, W]."""
        x = self.reduce(x)  # [B, C / 2, H, W]
        out: Tensor = self.merge(_pooled(self.pool, x))
        return out


class SimplifiedCSPSPPF(nn.Module):
    """SimCSPSPPF: the same pooling between convolutions on one half, the other half goes past (arXiv 2301.05586)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.bypass = ConvNormActivation(channels, half, 1)
        self.before = nn.Sequential(
            ConvNormActivation(channels, half, 1), ConvNormActivation(half, half, 3), ConvNormActivation(half, half, 1)
        )
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)
        self.after = nn.Sequential(ConvNormActivation(4 * half, half, 1), ConvNormActivation(half, half, 3))
        self.merge = ConvNormActivation(2 * half, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C, H, W]."""
        inner = self.before(x)  # [B, C / 2, H, W]
        inner = self.after(_pooled(self.pool, inner))  # [B, C / 2, H, W]
        out: Tensor = self.merge(torch.cat([self.bypass(x), inner], dim=1))
        return out


def _pooled(pool: nn.Module, x: Tensor) -> Tensor:
    """[B, C, H, W] → [B, 4 C, H, W]: what was pooled no, one, two and three times."""
    near = pool(x)
    middle = pool(near)
    return torch.cat([x, near, middle, pool(middle)], dim=1)


POOLINGS: dict[str, Callable[[int], nn.Module]] = {"sppf": SimplifiedSPPF, "csp_sppf": SimplifiedCSPSPPF}


def block_builder(name: str) -> BlockBuilder:
    """The block of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in BLOCKS:
        raise UsageError(unknown_name("block", name, list(BLOCKS)))
    return BLOCKS[name]


class EfficientRepBackbone(nn.Module):
    """Stem and four stages, each one block of stride 2 and then the blocks of ``stage``; pooling.

    Args:
        channels: of the stem and of stages 2 to 5.
        repeats: of stages 2 to 5, given to ``stage``.
        stage: makes the blocks of a stage after the one that downsamples.
        in_channels: channels of the picture.
        strides: of the stem and of stages 2 to 5.
        build: the block of the stem and of the downsampling.
        deploy: build the fused form.
        pooling: a name of `POOLINGS`.
    """

    def __init__(
        self,
        channels: Sequence[int],
        repeats: Sequence[int],
        stage: StageBuilder,
        *,
        in_channels: int,
        strides: Sequence[int] = (2, 2, 2, 2, 2),
        build: BlockBuilder = RepVGGBlock,
        deploy: bool = False,
        pooling: str = "sppf",
    ) -> None:
        super().__init__()
        self.stem = build(in_channels, channels[0], stride=strides[0], deploy=deploy)
        stages = []
        for i, count in enumerate(repeats):
            down = build(channels[i], channels[i + 1], stride=strides[i + 1], deploy=deploy)
            stages.append(nn.Sequential(down, *stage(channels[i + 1], count)))
        self.stage2, self.stage3, self.stage4, self.stage5 = stages
        self.sppf = POOLINGS[pooling](channels[-1])

    @property
    def pyramid_channels(self) -> tuple[int, ...]:
        """Channels of the four maps of `pyramid`, as they are now: pruning changes them."""
        return tuple(last_channels(part) for part in (self.stage2, self.stage3, self.stage4, self.sppf))

    def pyramid(self, x: Tensor) -> tuple[Tensor, ...]:
        """float [B, C, H, W] → maps at strides 4, 8, 16 and 32 (1, 2, 4 and 8 with the small-image stem)."""
        c2: Tensor = self.stage2(self.stem(x))  # [B, 128 w, H / 4, W / 4]
        c3: Tensor = self.stage3(c2)  # [B, 256 w, H / 8, W / 8]
        c4: Tensor = self.stage4(c3)  # [B, 512 w, H / 16, W / 16]
        c5: Tensor = self.sppf(self.stage5(c4))  # [B, 1024 w, H / 32, W / 32]
        return c2, c3, c4, c5


class EfficientRep(EfficientRepBackbone):
    """EfficientRep of RepVGG blocks; global average; linear.

    Args:
        size: ``n`` or ``s``: depth and width multipliers of YOLOv6-N and YOLOv6-S.
        num_classes: outputs.
        in_channels: channels of the picture.
        input_size: height and width in pixels. Up to 64 the stem and stage 2 have stride 1 instead of 2, so that
            32 × 32 ends at 4 × 4, and `features` has strides 2, 4 and 8 instead of 8, 16 and 32.
        width: multiplier of all channels, on top of the size's.
        deploy: build the fused form.
        block: ``repvgg`` or ``qarepvgg``.

    Raises:
        UsageError: no such block.
    """

    def __init__(
        self,
        size: str,
        *,
        num_classes: int,
        in_channels: int,
        input_size: int,
        width: float,
        deploy: bool = False,
        block: str = "repvgg",
    ) -> None:
        build = block_builder(block)
        depth, base_width = MULTIPLIERS[size]
        channels = [make_divisible(c * base_width * width) for c in CHANNELS]
        super().__init__(
            channels,
            scaled_repeats(depth),
            lambda width, count: [build(width, width, deploy=deploy) for _ in range(count)],
            in_channels=in_channels,
            strides=fit_strides([2] * 5, input_size),
            build=build,
            deploy=deploy,
        )
        self.linear = nn.Linear(channels[-1], num_classes)
        initialize(self)

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of the three maps of `features`, as they are now: pruning changes them."""
        return self.pyramid_channels[1:]

    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps for a detector's neck.

        Args:
            x: float [B, C, H, W].

        Returns:
            maps at strides 8, 16 and 32 (2, 4 and 8 with the small-image stem); channels: ``feature_channels``.
        """
        return self.pyramid(x)[1:]

    def forward(self, x: Tensor) -> Tensor:
        """float [B, C, H, W] → logits [B, num_classes]."""
        logits: Tensor = self.linear(global_average(self.pyramid(x)[-1]))
        return logits


def scaled_repeats(depth: float, repeats: Sequence[int] = REPEATS) -> list[int]:
    """Blocks per stage under a depth multiplier, at least one each."""
    return [max(1, round(count * depth)) for count in repeats]


def efficientrep_n(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: int = 224,
    width: float = 1.0,
    deploy: bool = False,
    block: str = "repvgg",
) -> EfficientRep:
    """EfficientRep of YOLOv6-N: depth × 0.33, width × 0.25. See `EfficientRep` for the arguments."""
    return EfficientRep(
        "n",
        num_classes=num_classes,
        in_channels=in_channels,
        input_size=input_size,
        width=width,
        deploy=deploy,
        block=block,
    )


def efficientrep_s(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: int = 224,
    width: float = 1.0,
    deploy: bool = False,
    block: str = "repvgg",
) -> EfficientRep:
    """EfficientRep of YOLOv6-S: depth × 0.33, width × 0.50. See `EfficientRep` for the arguments."""
    return EfficientRep(
        "s",
        num_classes=num_classes,
        in_channels=in_channels,
        input_size=input_size,
        width=width,
        deploy=deploy,
        block=block,
    )
