"""Settings of a run by what the network is for: the class that holds them, and what is usual for some data."""

from __future__ import annotations

from edgevision.data.base import Dataset
from edgevision.training.config import RunConfig, TrainConfig, recipe_for
from edgevision.training.detection.config import DetectionConfig, recipe_for_boxes


def config_type(task: str) -> type[RunConfig]:
    """`TrainConfig`, for detectors `DetectionConfig`."""
    return DetectionConfig if task == "detection" else TrainConfig


def usual_config(task: str, dataset: Dataset, *, input_size: int) -> RunConfig:
    """The recipe for a data set: a classifier's goes by its kind, a detector's by the number of pictures.

    Args:
        task: ``classification`` or ``detection``.
        dataset: the training pictures.
        input_size: of the network.
    """
    if task == "detection":
        return recipe_for_boxes(len(dataset))
    return recipe_for(dataset.name, input_size=input_size)
