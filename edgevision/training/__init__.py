"""Training: `train`, its settings `TrainConfig` and, for detectors, `DetectionConfig`, and recipes it uses without."""

from __future__ import annotations

from edgevision.dependencies import require

# one line that names the extra, before a module of this room fails on its own import
require("torch", purpose="train")
require("safetensors", purpose="write checkpoints", extra="train")

from edgevision.training.config import RECIPES, TrainConfig, recipe_for  # noqa: E402 - after the check above
from edgevision.training.detection.config import DetectionConfig  # noqa: E402
from edgevision.training.run import train  # noqa: E402

__all__ = ["RECIPES", "DetectionConfig", "TrainConfig", "recipe_for", "train"]
