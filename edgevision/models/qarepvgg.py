"""QARepVGG: a RepVGG whose fused weights survive INT8. Chu et al. 2022, arXiv 2212.01593.

RepVGG's batch norms on the 1×1 and identity branches let the fused weights and the activations grow outliers. The
paper's setting S4 leaves a batch norm on the 3×3 branch alone and puts one after the addition.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgevision.models.repvgg import (
    A0,
    A1,
    A2,
    B0,
    TINY,
    RepBlock,
    RepVGG,
    fold_bn,
    identity_kernel,
    pad_to_3x3,
)


class QARepVGGBlock(RepBlock):
    """ReLU(BN(BN(conv3×3(x)) + conv1×1(x) + x)), the last term only where the shape is kept (setting S4)."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, deploy: bool = False) -> None:
        super().__init__(in_channels, out_channels, stride=stride, deploy=deploy)
        if not deploy:
            self.rbr_1x1 = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.bn = nn.BatchNorm2d(out_channels)

    def branches(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C', H / stride, W / stride]."""
        out: Tensor = self.rbr_dense(x) + self.rbr_1x1(x)
        normalized: Tensor = self.bn(out + x if self.keeps_shape else out)
        return normalized

    def equivalent_kernel_bias(self) -> tuple[Tensor, Tensor]:
        """The branches' kernels and biases, summed, then the last batch norm folded in."""
        kernel, bias = self.rbr_dense.equivalent_kernel_bias()
        kernel = kernel + pad_to_3x3(self.rbr_1x1.weight.double())
        if self.keeps_shape:
            kernel = kernel + identity_kernel(kernel.shape[1], like=kernel)
        return fold_bn(kernel, bias, self.bn)


def qarepvgg_a0(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: int = 224,
    width: float = 1.0,
    deploy: bool = False,
) -> RepVGG:
    """QARepVGG in the size of RepVGG-A0. See `RepVGG` for the arguments."""
    return RepVGG(
        A0,
        num_classes=num_classes,
        in_channels=in_channels,
        input_size=input_size,
        width=width,
        deploy=deploy,
        block=QARepVGGBlock,
    )


def qarepvgg_a1(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: int = 224,
    width: float = 1.0,
    deploy: bool = False,
) -> RepVGG:
    """QARepVGG in the size of RepVGG-A1. See `RepVGG` for the arguments."""
    return RepVGG(
        A1,
        num_classes=num_classes,
        in_channels=in_channels,
        input_size=input_size,
        width=width,
        deploy=deploy,
        block=QARepVGGBlock,
    )


def qarepvgg_a2(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: int = 224,
    width: float = 1.0,
    deploy: bool = False,
) -> RepVGG:
    """QARepVGG in the size of RepVGG-A2. See `RepVGG` for the arguments."""
    return RepVGG(
        A2,
        num_classes=num_classes,
        in_channels=in_channels,
        input_size=input_size,
        width=width,
        deploy=deploy,
        block=QARepVGGBlock,
    )


def qarepvgg_b0(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: int = 224,
    width: float = 1.0,
    deploy: bool = False,
) -> RepVGG:
    """QARepVGG in the size of RepVGG-B0. See `RepVGG` for the arguments."""
    return RepVGG(
        B0,
        num_classes=num_classes,
        in_channels=in_channels,
        input_size=input_size,
        width=width,
        deploy=deploy,
        block=QARepVGGBlock,
    )


def qarepvgg_tiny(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: int = 224,
    width: float = 1.0,
    deploy: bool = False,
) -> RepVGG:
    """QARepVGG in the size of `repvgg_tiny`. See `RepVGG` for the arguments."""
    return RepVGG(
        TINY,
        num_classes=num_classes,
        in_channels=in_channels,
        input_size=input_size,
        width=width,
        deploy=deploy,
        block=QARepVGGBlock,
    )
