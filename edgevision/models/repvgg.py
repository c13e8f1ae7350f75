"""RepVGG: trained with three branches per block, run as one 3×3 convolution. Ding et al. 2021, arXiv 2101.03697.

Parameter names are those of the authors' release (``stage1.0.rbr_dense.conv.weight`` …).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgevision.models.layers import fit_strides, global_average, initialize, make_divisible


class ConvBN(nn.Module):
    """Convolution without bias and batch norm; padding keeps the size at stride 1."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C', H / stride, W / stride]."""
        out: Tensor = self.bn(self.conv(x))
        return out

    def equivalent_kernel_bias(self) -> tuple[Tensor, Tensor]:
        """float64 kernel and bias of the one convolution equal to both in eval mode."""
        return fold_bn(self.conv.weight, None, self.bn)


def identity_kernel(channels: int, like: Tensor) -> Tensor:
    """The 3×3 kernel [C, C, 3, 3] that changes nothing."""
    kernel = torch.zeros(channels, channels, 3, 3, dtype=like.dtype, device=like.device)
    kernel[range(channels), range(channels), 1, 1] = 1
    return kernel


def pad_to_3x3(kernel: Tensor) -> Tensor:
    """A 1×1 kernel as the centre of a 3×3 one: [O, I, 1, 1] → [O, I, 3, 3]."""
    return nn.functional.pad(kernel, [1, 1, 1, 1])


def fold_bn(kernel: Tensor, bias: Tensor | None, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Fold a batch norm in eval mode into the convolution before it, in float64 (section 3.3).

    Sums of branches cancel; folding in float32 would lose digits that the fused weights can still hold.

    Args:
        kernel: [O, I, kH, kW].
        bias: [O], or None for zero.
        bn: the batch norm over O channels.

    Returns:
        float64 kernel [O, I, kH, kW] and bias [O].
    """
    assert bn.running_mean is not None
    assert bn.running_var is not None
    scale = bn.weight.double() / torch.sqrt(bn.running_var.double() + bn.eps)  # γ / σ  [O]
    offset = -bn.running_mean.double() if bias is None else bias.double() - bn.running_mean.double()
    return kernel.double() * scale[:, None, None, None], bn.bias.double() + offset * scale


class RepBlock(nn.Module, ABC):
    """Branches that end in one ReLU and are equal to one 3×3 convolution in eval mode; the base of both blocks.

    Args:
        in_channels: C.
        out_channels: C'.
        stride: 1 or 2.
        deploy: build the fused form: one 3×3 convolution with bias and ReLU.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, deploy: bool = False) -> None:
        super().__init__()
        self.stride = stride
        # decided once: pruning keeps the two ends of an identity branch the same, and may make others equal
        self.keeps_shape = stride == 1 and in_channels == out_channels
        self.nonlinearity = nn.ReLU(inplace=True)
        if deploy:
            self.rbr_reparam = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1)
        else:
            self.rbr_dense = ConvBN(in_channels, out_channels, 3, stride)

    @property
    def is_fused(self) -> bool:
        """Whether the block is one convolution."""
        return "rbr_reparam" in self._modules

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C', H / stride, W / stride]."""
        out: Tensor = self.nonlinearity(self.rbr_reparam(x) if self.is_fused else self.branches(x))
        return out

    @abstractmethod
    def branches(self, x: Tensor) -> Tensor:
        """What comes before the ReLU, in training form."""

    @abstractmethod
    def equivalent_kernel_bias(self) -> tuple[Tensor, Tensor]:
        """float64 kernel [C', C, 3, 3] and bias [C'] of the one convolution equal to the branches in eval mode."""

    @torch.no_grad()
    def fuse(self) -> None:
        """Replace the branches by one 3×3 convolution, in place. A fused block stays as it is."""
        if self.is_fused:
            return
        kernel, bias = self.equivalent_kernel_bias()
        weight = self.rbr_dense.conv.weight
        # skip_init: fusing draws no random numbers, so a training that exports now and then stays reproducible
        conv = nn.utils.skip_init(
            nn.Conv2d, kernel.shape[1], kernel.shape[0], 3, self.stride, 1, dtype=weight.dtype, device=weight.device
        )
        conv.weight.copy_(kernel)
        conv.bias.copy_(bias)
        for branch in [name for name in self._modules if name != "nonlinearity"]:
            delattr(self, branch)
        self.rbr_reparam = conv


class RepVGGBlock(RepBlock):
    """ReLU(BN(conv3×3(x)) + BN(conv1×1(x)) + BN(x)); the last branch only where the shape is kept (figure 2)."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, deploy: bool = False) -> None:
        super().__init__(in_channels, out_channels, stride=stride, deploy=deploy)
        if not deploy:
            self.rbr_1x1 = ConvBN(in_channels, out_channels, 1, stride)
            if self.keeps_shape:
                self.rbr_identity = nn.BatchNorm2d(in_channels)

    def branches(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C', H / stride, W / stride]."""
        out: Tensor = self.rbr_dense(x) + self.rbr_1x1(x)
        return out + self.rbr_identity(x) if self.keeps_shape else out

    def equivalent_kernel_bias(self) -> tuple[Tensor, Tensor]:
        """The three branches' kernels and biases, summed."""
        kernel, bias = self.rbr_dense.equivalent_kernel_bias()
        kernel_1x1, bias_1x1 = self.rbr_1x1.equivalent_kernel_bias()
        kernel, bias = kernel + pad_to_3x3(kernel_1x1), bias + bias_1x1
        if self.keeps_shape:
            kernel_id, bias_id = fold_bn(identity_kernel(kernel.shape[1], like=kernel), None, self.rbr_identity)
            kernel, bias = kernel + kernel_id, bias + bias_id
        return kernel, bias


BlockBuilder = Callable[..., RepBlock]


class Size(NamedTuple):
    """One line of table 2.

    Attributes:
        repeats: blocks of stages 1 to 4; stage 0 has one.
        channels: of stages 0 to 4: min(64, 64 a), 64 a, 128 a, 256 a, 512 b.
    """

    repeats: tuple[int, int, int, int]
    channels: tuple[int, int, int, int, int]


A0 = Size((2, 4, 14, 1), (48, 48, 96, 192, 1280))  # a = 0.75, b = 2.5
A1 = Size((2, 4, 14, 1), (64, 64, 128, 256, 1280))  # a = 1, b = 2.5
A2 = Size((2, 4, 14, 1), (64, 96, 192, 384, 1408))  # a = 1.5, b = 2.75
B0 = Size((4, 6, 16, 1), (64, 64, 128, 256, 1280))  # a = 1, b = 2.5
TINY = Size((1, 2, 2, 1), (16, 16, 32, 64, 128))  # ours, for small pictures and tests


class RepVGG(nn.Module):
    """Five stages of 3×3 blocks, the first block of each with stride 2; global average; linear.

    Args:
        size: `A0`, `A1`, `A2`, `B0` or `TINY`.
        num_classes: outputs.
        in_channels: channels of the picture.
        input_size: height and width in pixels. Up to 64 the stages 0 and 1 have stride 1 instead of 2, so that
            32 × 32 ends at 4 × 4.
        width: multiplier of all channels, on top of the paper's a and b that ``size`` already contains.
        deploy: build the fused form.
        block: `RepVGGBlock` or another of its signature.
    """

    def __init__(
        self,
        size: Size,
        *,
        num_classes: int,
        in_channels: int,
        input_size: int,
        width: float,
        deploy: bool = False,
        block: BlockBuilder = RepVGGBlock,
    ) -> None:
        super().__init__()
        strides = fit_strides([2] * 5, input_size)
        widths = [make_divisible(c * width) for c in size.channels]
        self.stage0 = block(in_channels, widths[0], stride=strides[0], deploy=deploy)
        stages = [
            nn.Sequential(
                *(
                    block(widths[i if repeat == 0 else i + 1], widths[i + 1], stride=stride, deploy=deploy)
                    for repeat, stride in enumerate([strides[i + 1]] + [1] * (size.repeats[i] - 1))
                )
            )
            for i in range(4)
        ]
        self.stage1, self.stage2, self.stage3, self.stage4 = stages
        self.linear = nn.Linear(widths[-1], num_classes)
        initialize(self)

    @property
    def pyramid_channels(self) -> tuple[int, ...]:
        """Channels of the maps of `pyramid`, as they are now: pruning changes them."""
        stages = (self.stage1, self.stage2, self.stage3, self.stage4)
        return tuple([m.out_channels for m in s.modules() if isinstance(m, nn.Conv2d)][-1] for s in stages)

    def pyramid(self, x: Tensor) -> tuple[Tensor, ...]:
        """float [B, C, H, W] → maps at strides 4, 8, 16 and 32 for a detector's neck."""
        x = self.stage0(x)  # [B, 64 a, H / 2, W / 2]
        c2: Tensor = self.stage1(x)  # [B, 64 a, H / 4, W / 4]
        c3: Tensor = self.stage2(c2)  # [B, 128 a, H / 8, W / 8]
        c4: Tensor = self.stage3(c3)  # [B, 256 a, H / 16, W / 16]
        c5: Tensor = self.stage4(c4)  # [B, 512 b, H / 32, W / 32]
        return c2, c3, c4, c5

    def forward(self, x: Tensor) -> Tensor:
        """float [B, C, H, W] → logits [B, num_classes]."""
        logits: Tensor = self.linear(global_average(self.pyramid(x)[-1]))
        return logits


def repvgg_a0(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: int = 224,
    width: float = 1.0,
    deploy: bool = False,
) -> RepVGG:
    """RepVGG-A0: a = 0.75, b = 2.5. See `RepVGG` for the arguments."""
    return RepVGG(
        A0,
        num_classes=num_classes,
        in_channels=in_channels,
        input_size=input_size,
        width=width,
        deploy=deploy,
    )


def repvgg_a1(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: int = 224,
    width: float = 1.0,
    deploy: bool = False,
) -> RepVGG:
    """RepVGG-A1: a = 1, b = 2.5. See `RepVGG` for the arguments."""
    return RepVGG(
        A1,
        num_classes=num_classes,
        in_channels=in_channels,
        input_size=input_size,
        width=width,
        deploy=deploy,
    )


def repvgg_a2(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: int = 224,
    width: float = 1.0,
    deploy: bool = False,
) -> RepVGG:
    """RepVGG-A2: a = 1.5 with 64 channels in stage 0, b = 2.75. See `RepVGG` for the arguments."""
    return RepVGG(
        A2,
        num_classes=num_classes,
        in_channels=in_channels,
        input_size=input_size,
        width=width,
        deploy=deploy,
    )


def repvgg_b0(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: int = 224,
    width: float = 1.0,
    deploy: bool = False,
) -> RepVGG:
    """RepVGG-B0: a = 1, b = 2.5, deeper than A1. See `RepVGG` for the arguments."""
    return RepVGG(
        B0,
        num_classes=num_classes,
        in_channels=in_channels,
        input_size=input_size,
        width=width,
        deploy=deploy,
    )


def repvgg_tiny(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: int = 224,
    width: float = 1.0,
    deploy: bool = False,
) -> RepVGG:
    """Seven small blocks, for digits and tests; no size of the paper. See `RepVGG` for the arguments."""
    return RepVGG(
        TINY,
        num_classes=num_classes,
        in_channels=in_channels,
        input_size=input_size,
        width=width,
        deploy=deploy,
    )
