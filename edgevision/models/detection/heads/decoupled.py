"""Efficient decoupled head, anchor-free: YOLOv6. Arxiv 2209.02976, section 2.1 (and FCOS, arXiv 1904.01355)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from edgevision.models.detection.heads.priors import prior_logit, small_weights
from edgevision.models.detection.lite import DepthwisePointwise
from edgevision.models.layers import ConvNormActivation


class DecoupledHead(nn.Module):
    """Per level a shared 1×1 convolution, then one 3×3 convolution each for classes and for boxes, and the outputs.

    Outputs, level by level, with s the stride: ``scores_{s}`` [B, num_classes, H / s, W / s], logits; ``boxes_{s}``
    [B, 4 · (reg_max + 1), H / s, W / s], how far left, top, right and bottom of the box are from the cell's centre,
    in strides: as numbers (reg_max = 0) or, side after side, as logits of the distances 0 to reg_max (distribution
    focal loss, arXiv 2006.04388).

    Args:
        in_channels: of the levels.
        num_classes: things to be found.
        strides: of the levels.
        reg_max: largest distance of the distribution; 0: plain numbers.
        convolution: ``plain`` or ``depthwise`` (5×5 depthwise and 1×1, for ARM).
    """

    kind = "yolov6"

    def __init__(
        self,
        in_channels: Sequence[int],
        *,
        num_classes: int,
        strides: Sequence[int],
        reg_max: int = 0,
        convolution: str = "plain",
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.strides = tuple(strides)
        self.reg_max = reg_max
        kernels = {"plain": (1, 3), "depthwise": (5, 5)}[convolution]

        def convolutions(kernel: int) -> nn.ModuleList:
            if convolution == "depthwise":
                return nn.ModuleList(DepthwisePointwise(c, c, kernel) for c in in_channels)
            return nn.ModuleList(ConvNormActivation(c, c, kernel, activation=nn.SiLU) for c in in_channels)

        self.stems = convolutions(kernels[0])
        self.class_convs = convolutions(kernels[1])
        self.box_convs = convolutions(kernels[1])
        self.class_outputs = nn.ModuleList(nn.Conv2d(c, num_classes, 1) for c in in_channels)
        self.box_outputs = nn.ModuleList(nn.Conv2d(c, 4 * (reg_max + 1), 1) for c in in_channels)

    def forward(self, maps: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """One map per level → ``scores_{s}`` and ``boxes_{s}`` of each."""
        outputs = {}
        for level, (stride, x) in enumerate(zip(self.strides, maps, strict=True)):
            x = self.stems[level](x)
            outputs[f"scores_{stride}"] = self.class_outputs[level](self.class_convs[level](x))
            outputs[f"boxes_{stride}"] = self.box_outputs[level](self.box_convs[level](x))
        return outputs

    def set_priors(self) -> None:
        """Every class at a probability of 0.01; boxes of two strides, or distances spread evenly."""
        for scores, boxes in zip(self.class_outputs, self.box_outputs, strict=True):
            small_weights(scores, bias=prior_logit())
            small_weights(boxes, bias=1.0)

    def decoder_options(self) -> dict[str, Any]:
        """Options of the decoder ``yolov6``."""
        return {"strides": list(self.strides), "reg_max": self.reg_max, "num_classes": self.num_classes}
