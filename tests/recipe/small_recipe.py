"""A chain of every kind of stage that is done in seconds, shared by the tests and their subprocesses."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from edgevision.checkpoint import Checkpoint
from edgevision.pipeline.preprocessing import read_toml

STAGES = ("base", "pruned", "distilled", "qat", "int8")
_TRAINING = {"batch_size": 16, "lr": 0.05, "crop_padding": 2, "ema_decay": 0.0, "threads": 1}

EXAMPLE = Path(__file__).parents[2] / "examples" / "recipe.toml"
_SMALLER: dict[str, dict[str, Any]] = {
    "base": {"epochs": 2, **_TRAINING},
    "pruned": {"epochs": 1, "target": "none", "importance": "l2", **_TRAINING},
    "distilled": {"epochs": 2, **_TRAINING},
    "qat": {"epochs": 2, "calibration_images": 16, "batch_size": 16},
    "int8": {"targets": ["onnxruntime"], "calibration_images": 16},
}


def _example() -> dict[str, Any]:
    """The example as it stands, but for its size."""
    values = read_toml(EXAMPLE)
    del values["report"]
    values["model"]["input_size"] = 16
    values["data"] = {"train": "digits[:160]", "test": "digits[160:220]"}
    for stage in values["stage"]:
        stage.update(_SMALLER[stage["name"]])
    return values


VALUES = _example()


def recipe(**changes: dict[str, Any]) -> dict[str, Any]:
    """The values, with keys of stages changed: ``recipe(qat={"epochs": 1})``."""
    values = copy.deepcopy(VALUES)
    for name, keys in changes.items():
        next(stage for stage in values["stage"] if stage["name"] == name).update(keys)
    return values


def toml(values: dict[str, Any]) -> str:
    """Plain values as TOML, as far as recipes need it."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items() if not isinstance(value, (dict, list))]
    for key in ("report", "model", "data"):
        if isinstance(values.get(key), dict):
            lines += [f"[{key}]", *(f"{name} = {json.dumps(value)}" for name, value in values[key].items())]
    for stage in values["stage"]:
        lines += ["[[stage]]", *(f"{name} = {json.dumps(value)}" for name, value in stage.items())]
    return "\n".join(lines) + "\n"


def results(out: Path) -> dict[str, str | None]:
    """Stage → hash of what it has left; None where it is not finished."""
    stages = json.loads((out / "recipe.json").read_text())["stages"]
    return {name: entry["result"] for name, entry in stages.items()}


def weights(folder: Path) -> dict[str, Any]:
    return dict(Checkpoint.open(folder).weights)
