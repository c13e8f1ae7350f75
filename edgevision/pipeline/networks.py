"""A fresh network of the zoo that fits a data set."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevision.data.base import Dataset
from edgevision.errors import DataError, UsageError
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
    anchors: str | Sequence[Sequence[float]] | None = None,
    weights: str | Path | None = None,
    seed: int = 0,
) -> nn.Module:
    """A network of the zoo with as many outputs as the data has classes, and first weights that follow from ``seed``.

    Args:
        name: in the zoo.
        dataset: labelled pictures, or pictures with boxes.
        width: width multiplier.
        input_size: height and width; by default `usual_input_size`.
        in_channels: by default 1 for digits, else 3.
        anchors: priors of a YOLOv3, or what `read_anchors` reads them from; by default the paper's.
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
        "input_size": input_size or usual_input_size(name, dataset),
        "width": width,
    }
    if anchors is not None:
        chosen = read_anchors(anchors, arguments["input_size"]) if isinstance(anchors, str) else anchors
        arguments["anchors"] = [[float(side) for side in prior] for prior in chosen]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = create_model(name, **arguments)
    if weights is not None:
        load_weights(model, weights)
    return model


def task_of_source(source: str | Path, what: str = "network") -> str:
    """``classification`` or ``detection``: what a Checkpoint folder or a name of the zoo is for.

    Args:
        source: one of the two.
        what: it is to be, for the message.

    Raises:
        UsageError: neither of the two.
        CheckpointError: the checkpoint cannot be read.
    """
    from edgevision.checkpoint import Checkpoint, is_checkpoint
    from edgevision.models import MODELS, task_of

    if is_checkpoint(source):
        return Checkpoint.open(source).task
    if str(source) not in MODELS:
        raise UsageError(f"{source}: no {what}: expected a Checkpoint folder (model.json in it) or a zoo name")
    return task_of(str(source))


def num_classes(dataset: Dataset) -> int:
    """How many classes the data has, by its names or its labels."""
    if dataset.classes:
        return len(dataset.classes)
    if dataset.labels is None or not len(dataset.labels):
        raise DataError(f"{dataset.name} has no class labels to train on")
    return int(dataset.labels.max()) + 1


def usual_input_size(name: str, dataset: Dataset) -> int:
    """Of a classifier 32 for pictures up to 64 pixels, or 224; of a detector `usual_detector_size`."""
    from edgevision.models import task_of
    from edgevision.training.detection.config import usual_detector_size

    if task_of(name) == "detection":
        return usual_detector_size(name, len(dataset))
    if not len(dataset):
        raise DataError(f"{dataset.name} has no pictures")
    return 32 if max(to_image(dataset[0].image).size) <= 64 else 224


def read_anchors(source: str, input_size: int | None) -> list[list[float]]:
    """Priors [width, height] in pixels of the input, from what ``edgevision priors`` printed or from a list.

    Args:
        source: a file that holds the command's output, with ``--json`` or without, or a list of pairs; or such a list
            itself: ``[[10, 13], [16, 30]]``.
        input_size: of the network; priors found for another one are refused. None where it is not settled yet.

    Raises:
        UsageError: nothing of the kind, or priors of another input size.
    """
    path = Path(source).expanduser()
    try:
        held = path.read_text(encoding="utf-8") if not source.lstrip().startswith("[") else source
        found: Any = json.loads(_LINE.sub(r"\1", held) if _LINE.search(held) else held)
    except (OSError, ValueError) as error:
        raise UsageError(f"anchors {source!r}: {error}; give {_ANCHORS}") from error
    if isinstance(found, dict):
        size = found.get("size", [input_size, input_size])
        if input_size is not None and size != [input_size, input_size]:
            raise UsageError(
                f"{source} holds priors of an input of {' x '.join(map(str, size))} pixels, the network's is "
                f"{input_size}: find them with edgevision priors --size {input_size}"
            )
        found = found.get("priors")
    if not _are_pairs(found):
        raise UsageError(f"anchors {source!r} are no pairs of width and height; give {_ANCHORS}")
    return [[float(width), float(height)] for width, height in found]


_ANCHORS = "a file with the output of edgevision priors, or a list such as [[10, 13], [16, 30]]"
# the last line that the command prints for people, and nothing else of what it says
_LINE = re.compile(r"\A.*^anchors=(\[.*\])$.*\Z", re.DOTALL | re.MULTILINE)


def _are_pairs(found: Any) -> bool:
    def number(side: object) -> bool:
        return isinstance(side, (int, float)) and not isinstance(side, bool)

    return isinstance(found, list) and bool(found) and all(
        isinstance(pair, list) and len(pair) == 2 and all(map(number, pair)) for pair in found
    )  # fmt: skip
