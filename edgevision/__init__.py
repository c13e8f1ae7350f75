"""EdgeVision: train, quantize, convert and run light vision networks on edge devices.

Everything below is imported when it is first used: ``import edgevision`` costs next to nothing, and a board with
one runtime installed never touches torch or onnx.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from edgevision.bundle import Bundle
    from edgevision.checkpoint import Checkpoint
    from edgevision.data import open_dataset
    from edgevision.devices.doctor import doctor
    from edgevision.errors import EdgeVisionError
    from edgevision.models import create_model
    from edgevision.parity import verify
    from edgevision.pipeline.checkpoint import load_checkpoint
    from edgevision.pipeline.convert import convert
    from edgevision.pipeline.distill import distill
    from edgevision.pipeline.prune import prune_checkpoint
    from edgevision.pipeline.quantize import quantize
    from edgevision.pipeline.sensitivity import sensitivity
    from edgevision.preprocess import PRESETS, Preprocess
    from edgevision.pruning import prune
    from edgevision.recipe.run import run_recipe
    from edgevision.runtime.session import Session, load
    from edgevision.training import train
    from edgevision_benchmarks.accuracy import evaluate_bundle
    from edgevision_benchmarks.bench import bench

# name → module that defines it
_HOME = {
    "Bundle": "edgevision.bundle",
    "Checkpoint": "edgevision.checkpoint",
    "EdgeVisionError": "edgevision.errors",
    "PRESETS": "edgevision.preprocess",
    "Preprocess": "edgevision.preprocess",
    "Session": "edgevision.runtime.session",
    "bench": "edgevision_benchmarks.bench",
    "convert": "edgevision.pipeline.convert",
    "create_model": "edgevision.models",
    "distill": "edgevision.pipeline.distill",
    "doctor": "edgevision.devices.doctor",
    "evaluate_bundle": "edgevision_benchmarks.accuracy",
    "load": "edgevision.runtime.session",
    "load_checkpoint": "edgevision.pipeline.checkpoint",
    "open_dataset": "edgevision.data",
    "prune": "edgevision.pruning",
    "prune_checkpoint": "edgevision.pipeline.prune",
    "quantize": "edgevision.pipeline.quantize",
    "run_recipe": "edgevision.recipe.run",
    "sensitivity": "edgevision.pipeline.sensitivity",
    "train": "edgevision.training",
    "verify": "edgevision.parity",
}

__all__ = [
    "PRESETS",
    "Bundle",
    "Checkpoint",
    "EdgeVisionError",
    "Preprocess",
    "Session",
    "bench",
    "convert",
    "create_model",
    "distill",
    "doctor",
    "evaluate_bundle",
    "load",
    "load_checkpoint",
    "open_dataset",
    "prune",
    "prune_checkpoint",
    "quantize",
    "run_recipe",
    "sensitivity",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'edgevision' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
