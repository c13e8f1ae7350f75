"""YOLOv3's head: three priors per cell at each scale. Redmon and Farhadi 2018, arXiv 1804.02767, sections 2.1–2.3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgevision.errors import UsageError
from edgevision.models.detection.darknet import darknet_conv
from edgevision.models.detection.heads.priors import prior_logit, small_weights
from edgevision.models.layers import make_divisible


class YOLOv3Head(nn.Module):
    """Per level a 3×3 convolution and the output.

    Outputs, from the coarsest level, with s the stride: ``anchors_{s}`` [B, A · (5 + num_classes), H / s, W / s]: prior
    after prior tx, ty, tw, th, objectness and class scores, all raw.

    Args:
        in_channels: of the levels.
        num_classes: things to be found.
        strides: of the levels.
        hidden: channels of the 3×3 convolutions, before ``width``.
        width: multiplier of ``hidden``.
        anchors: priors [width, height] in input pixels, smallest first; each level gets the same number, the first
            level the largest.

    Raises:
        UsageError: priors that do not divide into the levels, or that are no pairs of positive numbers.
    """

    kind = "yolov3"

    def __init__(
        self,
        in_channels: Sequence[int],
        *,
        num_classes: int,
        strides: Sequence[int],
        hidden: Sequence[int],
        anchors: Sequence[Sequence[float]],
        width: float = 1.0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.strides = tuple(strides)
        self.anchors = _per_level(anchors, len(self.strides))
        per_cell = len(self.anchors[0])
        widths = [make_divisible(c * width) for c in hidden]
        self.convs = nn.ModuleList(darknet_conv(c, w, 3) for c, w in zip(in_channels, widths, strict=True))
        self.outputs = nn.ModuleList(nn.Conv2d(w, per_cell * (5 + num_classes), 1) for w in widths)

    def forward(self, maps: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """One map per level → ``anchors_{s}`` of each."""
        return {
            f"anchors_{stride}": output(conv(x))
            for stride, conv, output, x in zip(self.strides, self.convs, self.outputs, maps, strict=True)
        }

    def set_priors(self) -> None:
        """Objectness at a probability of 0.01 and boxes as their priors.

        Classes are told apart in cells that hold something only: each begins at its share, at most one half.
        """
        share = prior_logit(min(0.5, 1 / self.num_classes))
        for output in self.outputs:
            assert isinstance(output, nn.Conv2d)
            assert output.bias is not None
            small_weights(output, bias=0.0)
            with torch.no_grad():
                bias = output.bias.view(-1, 5 + self.num_classes)
                bias[:, 4] = prior_logit()
                bias[:, 5:] = share

    def decoder_options(self) -> dict[str, Any]:
        """Options of the decoder ``yolov3``: ``anchors`` is one list of [width, height] per stride."""
        return {
            "strides": list(self.strides),
            "anchors": [[list(prior) for prior in level] for level in self.anchors],
            "num_classes": self.num_classes,
        }


def _per_level(anchors: Sequence[Sequence[float]], levels: int) -> list[list[tuple[float, float]]]:
    pairs = [tuple(float(side) for side in prior) for prior in anchors]
    if any(len(pair) != 2 or not all(0 < side < float("inf") for side in pair) for pair in pairs):
        raise UsageError(f"anchors must be [width, height] pairs of pixels above 0; got {anchors!r}")
    if not pairs or len(pairs) % levels:
        raise UsageError(f"{len(pairs)} anchors do not divide into {levels} levels; give {levels}, {2 * levels}, …")
    ordered = sorted(((pair[0], pair[1]) for pair in pairs), key=lambda pair: pair[0] * pair[1])
    count = len(pairs) // levels
    return [ordered[level * count : (level + 1) * count] for level in reversed(range(levels))]
