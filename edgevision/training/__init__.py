"""Training of classifiers: `train`, its settings `TrainConfig`, and the recipes it uses without any."""

from __future__ import annotations

from edgevision.dependencies import require

# one line that names the extra, before a module of this room fails on its own import
require("torch", purpose="train")
require("safetensors", purpose="write checkpoints", extra="train")

from edgevision.training.config import RECIPES, TrainConfig, recipe_for  # noqa: E402 - after the check above
from edgevision.training.run import train  # noqa: E402

__all__ = ["RECIPES", "TrainConfig", "recipe_for", "train"]
