"""Pictures that pruning looks at: to score channels on, and to measure what each group of channels is worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgevision.data.base import Dataset, Subset, evenly_spaced
from edgevision.dependencies import require
from edgevision.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from edgevision.checkpoint import Checkpoint
    from edgevision.pruning.losses import Labels
    from edgevision.pruning.sensitivity import PruningSensitivity

# pictures that Taylor importance and the sensitivity look at, in batches of
SCORING_PICTURES, _SCORING_BATCH = 512, 64
# maps of detectors are large
_DETECTION_BATCH = 8


def tensor_batches(
    data: str | Path | Dataset, source: Checkpoint, pictures: int, *, images: str | Path | None = None
) -> list[tuple[Tensor, Labels]]:
    """Some of the training pictures, spread evenly and mixed, as the network takes them; with their labels, if any.

    A detector's labels are boxes, `edgevision.training.detection.targets.Targets`.

    Raises:
        DataError: there are none, or one cannot be read.
        TrainingError: a detector's pictures have no boxes.
    """
    import torch

    from edgevision.data import batches, open_dataset
    from edgevision.errors import DataError
    from edgevision.training.detection.source import ValidationPictures

    dataset = open_dataset(data, split="train", images=images)
    if not len(dataset):
        raise DataError(f"{dataset.name} holds no pictures: give --data a folder that does")
    chosen = evenly_spaced(dataset, min(pictures, len(dataset)))
    # folders are sorted by class, and batch norms would see batches of one class
    order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0)).tolist()
    chosen = Subset(chosen, order)
    if source.task == "detection":
        found = ValidationPictures(chosen, source.preprocess, int(source.arguments["num_classes"]))
        return [(batch.inputs, batch.targets) for batch in found.batches(_DETECTION_BATCH)]
    return [
        (torch.from_numpy(inputs), None if labels is None else torch.from_numpy(labels))
        for inputs, labels in batches(chosen, source.preprocess, _SCORING_BATCH)
    ]


def pruning_sensitivity(
    source: str | Path | Checkpoint,
    *,
    data: str | Path | Dataset,
    images: str | Path | None = None,
    pictures: int = SCORING_PICTURES,
    importance: str = "taylor",
    ratios: Sequence[float] | None = None,
    round_to: int = 1,
    seed: int = 0,
) -> PruningSensitivity:
    """How much the answers suffer when each group of channels alone is pruned; nothing is changed or written.

    Args:
        source: a Checkpoint or its folder.
        data: pictures; with labels the accuracy is told, without them the change of the answers.
        images: folder of the pictures of a COCO file, where they are not beside it.
        pictures: how many of them.
        importance: which channels go.
        ratios: fractions that go; by default a quarter, a half and three quarters.
        round_to: channels stay multiples of this.
        seed: of the random importance.

    Raises:
        UsageError: a ratio outside (0, 1), an unknown importance, fewer than 1 picture.
        DataError: no pictures.
    """
    require("torch", purpose="prune")
    require("torch_pruning", purpose="prune")
    from edgevision.checkpoint import Checkpoint
    from edgevision.pruning import find_groups
    from edgevision.pruning.prune import input_shape_of
    from edgevision.pruning.sensitivity import DEFAULT_RATIOS, measure_sensitivity

    if pictures < 1:
        raise UsageError(f"pictures must be 1 or more; got {pictures}")
    opened = source if isinstance(source, Checkpoint) else Checkpoint.open(source)
    model = opened.build()
    return measure_sensitivity(
        model,
        find_groups(model, input_shape_of(model)),
        tensor_batches(data, opened, pictures, images=images),
        importance=importance,
        ratios=DEFAULT_RATIOS if ratios is None else ratios,
        round_to=round_to,
        seed=seed,
    )
