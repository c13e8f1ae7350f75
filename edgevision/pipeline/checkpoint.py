"""`load_checkpoint`: whatever a step left behind, opened by its folder alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgevision.dependencies import require

if TYPE_CHECKING:
    from edgevision.checkpoint import Checkpoint
    from edgevision_calibration.qat.model import QuantizedModel


def load_checkpoint(path: str | Path) -> Checkpoint | QuantizedModel:
    """Open a network that was trained, distilled, pruned, fused or quantized.

    Both kinds have ``build()``, which makes the torch module, ``preprocess``, ``classes``, ``task`` and ``metrics``,
    and both are sources for `edgevision.convert`.

    Args:
        path: folder of `edgevision.train`, `edgevision.distill`, `edgevision.prune_checkpoint` or
            `edgevision.quantize`.

    Returns:
        a `Checkpoint`, or for a folder of ``quantize`` a `QuantizedModel`, whose ``build()`` computes with the
        integers of its plan.

    Raises:
        CheckpointError: it is none of these, damaged, or of a newer version.
        MissingDependencyError: torch is not installed.
    """
    from edgevision.checkpoint import Checkpoint, is_checkpoint

    require("torch", purpose="open checkpoints")
    if not is_checkpoint(path):
        from edgevision_calibration.qat.model import QuantizedModel, is_quantized_model

        if is_quantized_model(path):
            require("onnx", purpose="open quantized networks")
            return QuantizedModel.open(path)
    return Checkpoint.open(path)
