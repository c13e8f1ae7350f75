"""A fresh network of the zoo that fits a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevision.data.base import Dataset
from edgevision.errors import DataError
from edgevision.images import to_image

if TYPE_CHECKING:
    from torch import nn


def network_for(
    name: str,
    dataset: Dataset,
    *,
    width: float = 1.0,
    input_size: int | None = None,
    in_channels: int | None = None,
    weights: str | Path | None = None,
    seed: int = 0,
) -> nn.Module:
    """A network of the zoo with as many outputs as the data has classes, and first weights that follow from ``seed``.

    Args:
        name: in the zoo.
        dataset: labelled pictures.
        width: width multiplier.
        input_size: height and width; by default 32 for pictures up to 64 pixels, or 224.
        in_channels: by default 1 for digits, else 3.
        weights: weight file to begin with.
        seed: of the first weights; the caller's own random numbers go on as they were.

    Raises:
        UsageError: no such network, or a value out of range.
        DataError: pictures without labels.
        CheckpointError: weights that do not fit.
    """
    import torch

    from edgevision.models import create_model
    from edgevision.models.weights import load_weights

    arguments: dict[str, Any] = {
        "num_classes": num_classes(dataset),
        "in_channels": in_channels or (1 if dataset.name.startswith("digits") else 3),
        "input_size": input_size or usual_input_size(dataset),
        "width": width,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = create_model(name, **arguments)
    if weights is not None:
        load_weights(model, weights)
    return model


def num_classes(dataset: Dataset) -> int:
    """How many classes the data has, by its names or its labels."""
    if dataset.classes:
        return len(dataset.classes)
    if dataset.labels is None or not len(dataset.labels):
        raise DataError(f"{dataset.name} has no class labels to train on")
    return int(dataset.labels.max()) + 1


def usual_input_size(dataset: Dataset) -> int:
    """32 for pictures up to 64 pixels, or 224."""
    if not len(dataset):
        raise DataError(f"{dataset.name} has no pictures")
    return 32 if max(to_image(dataset[0].image).size) <= 64 else 224
