"""What a run works on: the data's parts for training and validation, and the preprocess that fits the network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from edgevision.data.base import Dataset, Subset
from edgevision.errors import TrainingError, UsageError
from edgevision.preprocess import PRESETS, Preprocess
from edgevision.training.config import kind_of

# of each class every so-many-th picture validates, where the data has no part for it
HOLD_OUT_EVERY = 10


def architecture_of(model: nn.Module) -> dict[str, Any]:
    """``{"name": …, "arguments": {…}}`` of a zoo model, as a Checkpoint of it writes it down.

    Raises:
        UsageError: a module that does not tell.
    """
    architecture = getattr(model, "architecture", None)
    architecture = architecture if isinstance(architecture, dict) else {}
    missing = {"num_classes", "in_channels", "input_size"} - set(architecture.get("arguments", ()))
    if missing:
        raise UsageError(
            f"train takes a network of create_model; {type(model).__name__} has no `architecture` that names "
            f"{', '.join(sorted(missing))}, so its checkpoint could not be built again"
        )
    return dict(architecture)


def default_preprocess(data_name: str, *, input_size: int, in_channels: int) -> Preprocess:
    """The preset for a data set, fitted to a network's input.

    Digits are grey between −1 and 1; pictures up to 64 pixels are stretched to size; larger ones are resized by
    their shorter side and cropped, as is usual for ImageNet. One channel makes any of them grey.

    Raises:
        UsageError: a number of channels that pictures do not have.
    """
    if in_channels not in (1, 3):
        raise UsageError(f"pictures have 1 or 3 channels, the model takes {in_channels}; give a preprocess that fits")
    preset = "digits" if kind_of(data_name) == "digits" else "cifar10" if input_size <= 64 else "imagenet"
    fitted = PRESETS[preset].with_size(input_size, input_size)
    if fitted.channels == in_channels:
        return fitted
    color = "GRAY" if in_channels == 1 else "RGB"
    return replace(fitted, color=color, mean=(0.5,) * in_channels, std=(0.5,) * in_channels)


def check_preprocess(preprocess: Preprocess, model: nn.Module) -> None:
    """Refuse a preprocess that the network cannot take.

    Raises:
        UsageError: NHWC, or another number of channels than the model's.
    """
    if preprocess.layout != "NCHW":
        raise UsageError("training takes preprocess layout 'NCHW'; targets that want NHWC get it when converted")
    expected = architecture_of(model)["arguments"]["in_channels"]
    if expected != preprocess.channels:
        raise UsageError(
            f"the preprocess gives {preprocess.channels} channels ({preprocess.color}), the model takes {expected}"
        )


def check_classes(dataset: Dataset, model: nn.Module) -> None:
    """Refuse labels that the network has no output for.

    Raises:
        TrainingError: a class index at or above the model's number of classes.
    """
    outputs = architecture_of(model)["arguments"]["num_classes"]
    labels = dataset.labels
    if labels is None or len(labels) == 0:  # `ImageSource` refuses these
        return
    needed = max(int(labels.max()) + 1, len(dataset.classes))
    if needed > outputs:
        raise TrainingError(
            f"{dataset.name} has {needed} classes, the model {outputs} outputs; create it with num_classes={needed}"
        )


def hold_out(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """Split off a validation part: of each class, in the data's own order, every tenth picture.

    Raises:
        TrainingError: unlabelled, or too few pictures for one to be spared.
    """
    labels = dataset.labels
    if labels is None:
        raise TrainingError(f"{dataset.name} has no class labels; classification needs one for every picture")
    spared = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        spared[np.flatnonzero(labels == label)[HOLD_OUT_EVERY - 1 :: HOLD_OUT_EVERY]] = True
    if not spared.any():
        raise TrainingError(
            f"{dataset.name} has no part to validate on, and no class has {HOLD_OUT_EVERY} pictures to hold one out; "
            "name validation data (val_data)"
        )
    return Subset(dataset, np.flatnonzero(~spared).tolist()), Subset(dataset, np.flatnonzero(spared).tolist())
