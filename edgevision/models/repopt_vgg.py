"""RepOpt-VGG: a plain chain of 3×3 convolutions whose gradients carry what RepVGG's branches would have done.

Ding et al. 2022, "Re-parameterizing Your Optimizers rather than Architectures", arXiv 2205.15242. A block of three
branches with constant scales trains, under SGD, exactly like one convolution that starts from their sum and whose
gradient is multiplied by a constant mask (section 3.2, equation 5 for RepOpt-VGG). The scales are learned beforehand
by a short training of the block with branches (Hyper-Search, section 3.3), see `edgevision.training.repoptimizer`.
What is trained is what is deployed, so its weights have no branches to sum and survive INT8.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from edgevision.models.repvgg import A0, A1, A2, B0, TINY, RepBlock, RepVGG, Size, fold_bn, pad_to_3x3

_SCALES = ("scale_3x3", "scale_1x1", "scale_identity")


class _ScaleGradient(torch.autograd.Function):
    """The tensor itself; its gradient is multiplied by ``mask``."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor) -> Tensor:
        """Both of the same shape."""
        ctx.save_for_backward(mask)
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Grad Mult."""
        (mask,) = ctx.saved_tensors
        return gradients[0] * mask, None


def _scale_gradient(weight: Tensor, mask: Tensor) -> Tensor:
    out: Tensor = _ScaleGradient.apply(weight, mask)
    return out


class ScaledBlock(RepBlock):
    """What both forms of the block share: per-channel scales of three branches that fusing leaves behind."""

    def fuse(self) -> None:
        """Fold the batch norm into the 3×3 convolution, in place. A fused block stays as it is."""
        super().fuse()
        for name in _SCALES:
            if hasattr(self, name):
                delattr(self, name)


class RepOptBlock(ScaledBlock):
    """ReLU(BN(conv3×3(x))), with the gradient of the kernel multiplied by `gradient_mask` while it trains.

    The constant scales s, t and i of the 3×3, 1×1 and identity branch are buffers, so that a Checkpoint goes on as
    it began. A new block has s = 1, t = i = 0, which is plain SGD; so has one whose channels were pruned away since,
    where it is no longer told which scale belongs to which channel.
    """

    scale_3x3: Tensor
    scale_1x1: Tensor
    scale_identity: Tensor

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, deploy: bool = False) -> None:
        super().__init__(in_channels, out_channels, stride=stride, deploy=deploy)
        self._scaled_shape = (out_channels, in_channels)
        if not deploy:
            self.register_buffer("scale_3x3", torch.ones(out_channels))
            self.register_buffer("scale_1x1", torch.zeros(out_channels))
            if self.keeps_shape:
                self.register_buffer("scale_identity", torch.zeros(out_channels))

    def gradient_mask(self) -> Tensor:
        """The paper's mask [C', C, 3, 3]: s², in the centre + t², on the centre's diagonal + i² (equation 5, i = 1)."""
        mask = self.scale_3x3.square()[:, None, None, None].expand_as(self.rbr_dense.conv.weight).clone()
        mask[:, :, 1, 1] += self.scale_1x1.square()[:, None]
        if self.keeps_shape:
            diagonal = mask[:, :, 1, 1].diagonal()  # pruning can leave more channels on one side than on the other
            diagonal.add_(self.scale_identity[: len(diagonal)].square())
        return mask

    def channel_tensors(self) -> dict[str, str]:
        """Scales per channel that pruning has to cut."""
        return {name: "rbr_dense.conv" for name in _SCALES if hasattr(self, name)}

    def channels_removed(self) -> None:
        """The identity ends: outputs are no longer the inputs of the same number."""
        if hasattr(self, "scale_identity"):
            self.scale_identity.zero_()

    def branches(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C', H / stride, W / stride]."""
        if not self.training:
            plain: Tensor = self.rbr_dense(x)
            return plain
        weight = self.rbr_dense.conv.weight
        if tuple(weight.shape[:2]) == self._scaled_shape:
            weight = _scale_gradient(weight, self.gradient_mask())
        normalized: Tensor = self.rbr_dense.bn(nn.functional.conv2d(x, weight, None, self.stride, 1))
        return normalized

    def equivalent_kernel_bias(self) -> tuple[Tensor, Tensor]:
        """float64 kernel and bias with the batch norm folded in."""
        return self.rbr_dense.equivalent_kernel_bias()

    @torch.no_grad()
    def adopt(self, searched: SearchBlock) -> None:
        """Take the learned scales and begin at the sum of newly drawn branches (the paper's rule of initialization).

        The identity branch of the CSLA block is a trainable scale that begins at what the search learned, times a
        constant of 1. Random numbers are torch's own.
        """
        own = self.rbr_dense.conv.weight
        self.scale_3x3.copy_(searched.scale_3x3)
        self.scale_1x1.copy_(searched.scale_1x1)
        kernel_3x3, kernel_1x1 = torch.empty_like(own), torch.empty_like(own[:, :, :1, :1])
        for kernel in (kernel_3x3, kernel_1x1):
            nn.init.kaiming_normal_(kernel, mode="fan_out", nonlinearity="relu")
        identity = None
        if self.keeps_shape:
            self.scale_identity.fill_(1.0)
            identity = searched.scale_identity.to(own)
        own.copy_(_summed(kernel_3x3, kernel_1x1, self.scale_3x3, self.scale_1x1, identity))


class SearchBlock(ScaledBlock):
    """ReLU(BN(s · conv3×3(x) + t · conv1×1(x) + i · x)) with trainable scales per channel: the Hyper-Search form.

    The sum of the branches is computed as one convolution with the sum of their kernels, which is the same function
    with the same gradients.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, deploy: bool = False) -> None:
        super().__init__(in_channels, out_channels, stride=stride, deploy=deploy)
        if not deploy:
            self.rbr_1x1 = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.scale_3x3 = nn.Parameter(torch.ones(out_channels))
            self.scale_1x1 = nn.Parameter(torch.ones(out_channels))
            if self.keeps_shape:
                self.scale_identity = nn.Parameter(torch.ones(out_channels))

    def kernel(self) -> Tensor:
        """The three branches' kernels, scaled and summed: [C', C, 3, 3]."""
        identity = self.scale_identity if self.keeps_shape else None
        return _summed(self.rbr_dense.conv.weight, self.rbr_1x1.weight, self.scale_3x3, self.scale_1x1, identity)

    def branches(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C', H / stride, W / stride]."""
        normalized: Tensor = self.rbr_dense.bn(nn.functional.conv2d(x, self.kernel(), None, self.stride, 1))
        return normalized

    def equivalent_kernel_bias(self) -> tuple[Tensor, Tensor]:
        """float64 kernel and bias with the batch norm folded in."""
        return fold_bn(self.kernel(), None, self.rbr_dense.bn)


def _summed(
    kernel_3x3: Tensor, kernel_1x1: Tensor, scale_3x3: Tensor, scale_1x1: Tensor, identity: Tensor | None
) -> Tensor:
    """s · W3×3 + pad(t · W1×1) + diag(identity) → [C', C, 3, 3]; scales are [C']."""
    centre = scale_1x1[:, None, None, None] * kernel_1x1
    if identity is not None:
        centre = centre + torch.diag(identity)[:, :, None, None]
    return scale_3x3[:, None, None, None] * kernel_3x3 + pad_to_3x3(centre)


def scaled_blocks(model: nn.Module) -> Iterator[ScaledBlock]:
    """The unfused blocks of a RepOpt-VGG, in order; none of any other network."""
    for module in model.modules():
        if isinstance(module, ScaledBlock) and not module.is_fused:
            yield module


def _build(size: Size, search: bool, **arguments: Any) -> RepVGG:
    model = RepVGG(size, block=SearchBlock if search else RepOptBlock, **arguments)
    if search:
        # deeper branches begin smaller beside the identity: √(2 / depth)
        for depth, block in enumerate(scaled_blocks(model), start=1):
            assert isinstance(block, SearchBlock)
            for scale in (block.scale_3x3, block.scale_1x1):
                nn.init.constant_(scale, math.sqrt(2.0 / depth))
    return model


def repoptvgg_a0(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: int = 224,
    width: float = 1.0,
    deploy: bool = False,
    search: bool = False,
) -> RepVGG:
    """RepOpt-VGG in the size of RepVGG-A0. ``search``: the form whose scales learn; the rest is `RepVGG`'s."""
    return _build(
        A0,
        search,
        num_classes=num_classes,
        in_channels=in_channels,
        input_size=input_size,
        width=width,
        deploy=deploy,
    )


def repoptvgg_a1(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: int = 224,
    width: float = 1.0,
    deploy: bool = False,
    search: bool = False,
) -> RepVGG:
    """RepOpt-VGG in the size of RepVGG-A1. ``search``: the form whose scales learn; the rest is `RepVGG`'s."""
    return _build(
        A1,
        search,
        num_classes=num_classes,
        in_channels=in_channels,
        input_size=input_size,
        width=width,
        deploy=deploy,
    )


def repoptvgg_a2(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: int = 224,
    width: float = 1.0,
    deploy: bool = False,
    search: bool = False,
) -> RepVGG:
    """RepOpt-VGG in the size of RepVGG-A2. ``search``: the form whose scales learn; the rest is `RepVGG`'s."""
    return _build(
        A2,
        search,
        num_classes=num_classes,
        in_channels=in_channels,
        input_size=input_size,
        width=width,
        deploy=deploy,
    )


def repoptvgg_b0(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: int = 224,
    width: float = 1.0,
    deploy: bool = False,
    search: bool = False,
) -> RepVGG:
    """RepOpt-VGG in the size of RepVGG-B0. ``search``: the form whose scales learn; the rest is `RepVGG`'s."""
    return _build(
        B0,
        search,
        num_classes=num_classes,
        in_channels=in_channels,
        input_size=input_size,
        width=width,
        deploy=deploy,
    )


def repoptvgg_tiny(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: int = 224,
    width: float = 1.0,
    deploy: bool = False,
    search: bool = False,
) -> RepVGG:
    """RepOpt-VGG in the size of `repvgg_tiny`. ``search``: the form whose scales learn; the rest is `RepVGG`'s."""
    return _build(
        TINY,
        search,
        num_classes=num_classes,
        in_channels=in_channels,
        input_size=input_size,
        width=width,
        deploy=deploy,
    )
