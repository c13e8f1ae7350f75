"""SSD's multibox head in SSDLite's form. Liu et al. 2016, arXiv 1512.02325, section 2; 1801.04381, section 6.2."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgevision.detection.decoders.ssd import VARIANCES
from edgevision.models.detection.heads.priors import PRIOR_PROBABILITY, small_weights
from edgevision.models.layers import ConvNormActivation

# section 2.2 with SSDLite's ends: sides of the boxes of the first and of the last level, as shares of the picture's
SMALLEST, LARGEST = 0.2, 0.95


class SSDHead(nn.Module):
    """Per level a 3×3 depthwise and a 1×1 convolution each for classes and for boxes.

    Outputs, level by level from the finest, i = 0, 1, …, with A priors per cell: ``scores_{i}``
    [B, A · (num_classes + 1), h, w]: prior after prior logits of which the first is the background's; ``boxes_{i}``
    [B, A · 4, h, w]: prior after prior the offsets of the centre and the log sizes, divided by the variances.

    Args:
        in_channels: of the levels.
        num_classes: things to be found, without the background.
        strides: of the levels; smaller maps are rounded up.
    """

    kind = "ssd"

    def __init__(self, in_channels: Sequence[int], *, num_classes: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.strides = tuple(strides)
        self.priors = default_boxes(len(self.strides))
        levels = list(zip(in_channels, self.priors, strict=True))
        self.class_convs = nn.ModuleList(_depthwise(c) for c in in_channels)
        self.box_convs = nn.ModuleList(_depthwise(c) for c in in_channels)
        self.class_outputs = nn.ModuleList(nn.Conv2d(c, len(p) * (num_classes + 1), 1) for c, p in levels)
        self.box_outputs = nn.ModuleList(nn.Conv2d(c, len(p) * 4, 1) for c, p in levels)

    def forward(self, maps: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """One map per level → ``scores_{i}`` and ``boxes_{i}`` of each."""
        outputs = {}
        for level, x in enumerate(maps):
            outputs[f"scores_{level}"] = self.class_outputs[level](self.class_convs[level](x))
            outputs[f"boxes_{level}"] = self.box_outputs[level](self.box_convs[level](x))
        return outputs

    def set_priors(self) -> None:
        """All classes together at a probability of 0.01, the rest is background; boxes as their priors."""
        background = math.log(self.num_classes * (1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY)
        for scores, boxes in zip(self.class_outputs, self.box_outputs, strict=True):
            small_weights(boxes, bias=0.0)
            small_weights(scores, bias=0.0)
            assert isinstance(scores, nn.Conv2d)
            assert scores.bias is not None
            with torch.no_grad():
                scores.bias.view(-1, self.num_classes + 1)[:, 0] = background

    def decoder_options(self) -> dict[str, Any]:
        """Options of the decoder ``ssd``.

        ``priors`` is one list per level of [width, height] as shares of the input's; centres are those of the cells.
        """
        return {
            "num_classes": self.num_classes,
            "priors": [[list(prior) for prior in level] for level in self.priors],
            "variances": list(VARIANCES),
        }


def default_boxes(levels: int) -> list[list[tuple[float, float]]]:
    """[width, height] of the priors of each level, as shares of the picture's sides.

    Scales rise evenly from `SMALLEST` to `LARGEST` (equation 4). Six to a cell: aspect ratios 1, 2, 1/2, 3, 1/3, and
    a square between this scale and the next. The finest level has three: a small square, and 2 and 1/2.
    """
    step = (LARGEST - SMALLEST) / max(1, levels - 1)
    scales = [SMALLEST + step * level for level in range(levels)] + [1.0]
    boxes = []
    for level in range(levels):
        ratios = (2.0, 0.5) if level == 0 else (1.0, 2.0, 0.5, 3.0, 1 / 3)
        shaped = [(scales[level] * math.sqrt(r), scales[level] / math.sqrt(r)) for r in ratios]
        square = SMALLEST / 2 if level == 0 else math.sqrt(scales[level] * scales[level + 1])
        boxes.append([(square, square), *shaped] if level == 0 else [*shaped, (square, square)])
    return boxes


def _depthwise(channels: int) -> ConvNormActivation:
    return ConvNormActivation(channels, channels, 3, groups=channels, activation=nn.ReLU6)
