"""How much a layer computes: a stand-in for measured times that can be worked out."""

from __future__ import annotations

import math

from edgevision.pruning.latency_table import LayerPoint


def multiply_adds(point: LayerPoint) -> int:
    """Of one run."""
    outputs = math.prod(
        (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        for size, pad, dilation, kernel, stride in zip(
            point.input_size, point.padding, point.dilation, point.kernel, point.stride, strict=True
        )
    )
    return outputs * point.out_channels * (point.in_channels // point.groups) * math.prod(point.kernel)
