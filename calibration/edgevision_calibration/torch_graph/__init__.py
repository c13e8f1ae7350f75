"""The canonical ONNX graph executed in torch, in float or as a `QuantPlan` would have it, with weights that can learn.

What torch is for here: gradients. Everything that only needs answers runs in ONNX Runtime.
"""

from __future__ import annotations

from edgevision.dependencies import require

# one line that names the extra, before a module of this package fails on its own import
require("torch", purpose="run graphs with gradients")

from edgevision_calibration.torch_graph.fake_quant import FakeQuantGraph, fake_quantize  # noqa: E402 - after the check
from edgevision_calibration.torch_graph.module import TorchGraph  # noqa: E402

__all__ = ["FakeQuantGraph", "TorchGraph", "fake_quantize"]
