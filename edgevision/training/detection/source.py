"""Pictures with boxes on their way to a detector: decoded once where they fit into memory, read ahead by threads."""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from PIL import Image

from edgevision.data.base import Boxes, Dataset
from edgevision.errors import DataError, TrainingError
from edgevision.files import sha256_bytes
from edgevision.images import UInt8Array, to_image
from edgevision.preprocess import Placement, Preprocess
from edgevision.progress import Progress
from edgevision.training.detection.augment import Augmenter, Example, Picture, input_size
from edgevision.training.detection.config import DetectionConfig
from edgevision.training.detection.targets import Targets
from edgevision.training.source import CACHE_LIMIT, IntArray, read_ahead

T = TypeVar("T")

# kept pictures are so much larger than the input, which random scaling then mostly shrinks
KEPT_SIZE = 1.5
# Pillow keeps RGB in four bytes
_BYTES_PER_PIXEL = {"RGB": 4, "L": 1}


class BoxSource(ABC, Generic[T]):
    """The pictures of a data set with their objects, in the form ``T`` that is kept of each.

    Args:
        dataset: pictures with boxes, of which some may have none.
        preprocess: how pictures become the network's input.
        num_classes: outputs of the network.
        workers: threads that read ahead; None for as many as help.
        cache_limit: bytes up to which all pictures are kept in memory.

    Raises:
        TrainingError: the data set is empty or has no boxes.
        DataError: a class index the network has no output for; names the file.
    """

    def __init__(
        self,
        dataset: Dataset,
        preprocess: Preprocess,
        num_classes: int,
        *,
        workers: int | None = None,
        cache_limit: int = CACHE_LIMIT,
    ) -> None:
        self.dataset = dataset
        self.preprocess = preprocess
        self.boxes = _checked_boxes(dataset, num_classes)
        self.cache_limit = cache_limit
        self.workers = max(1, min(8, (os.cpu_count() or 1) - 1)) if workers is None else workers
        self._kept: list[T] | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def digest(self) -> str:
        """Hash of all boxes and of 16 pictures spread over the set."""
        chosen = np.unique(np.linspace(0, len(self) - 1, 16).round().astype(int)).tolist()
        parts = [boxes.xyxy.tobytes() + boxes.labels.tobytes() for boxes in self.boxes]
        parts += [np.asarray(self._geometry(index)[0]).tobytes() for index in chosen]
        return sha256_bytes(b"".join(parts))[:16]

    def __getitem__(self, index: int) -> T:
        """What is kept of a picture.

        Raises:
            DataError: it cannot be read.
        """
        return self._read(index) if self._kept is None else self._kept[index]

    def fill_cache(self, description: str, *, show: bool = True) -> None:
        """Decode everything once, where it fits; does nothing otherwise or when it is done already.

        Raises:
            DataError: a picture cannot be read.
        """
        # the first picture tells how large they are
        if self._kept is not None or self._size(self._read(0)) * len(self) > self.cache_limit:
            return
        kept: list[T] = []
        progress = Progress(description, len(self)) if show and len(self) > 1000 else None
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            if progress is None:
                kept.extend(pool.map(self._read, range(len(self))))
            else:
                with progress:
                    for one in pool.map(self._read, range(len(self))):
                        kept.append(one)
                        progress.advance()
        self._kept = kept

    def _geometry(self, index: int) -> tuple[Image.Image, Placement]:
        """The picture exactly as the preprocess lays it out, and where it lies in it."""
        image = to_image(self.dataset[index].image)
        return self.preprocess.geometry(image), self.preprocess.placement(*image.size)

    @abstractmethod
    def _read(self, index: int) -> T: ...

    @abstractmethod
    def _size(self, one: T) -> int:
        """Bytes of what is kept of a picture."""


@dataclass(frozen=True)
class Batch:
    """What one step works on: pixels uint8 ``[B, H, W, C]`` and the objects in them."""

    pixels: UInt8Array
    targets: Targets


class TrainingPictures(BoxSource[Picture]):
    """Pictures to be augmented, kept at most `KEPT_SIZE` times as large as the input."""

    def _read(self, index: int) -> Picture:
        image = to_image(self.dataset[index].image)
        width, height = image.size
        if self.preprocess.color == "GRAY":
            image = image.convert("L")
        place = self.preprocess.placement(width, height)
        shrink = min(1.0, KEPT_SIZE * max(place.scale_x, place.scale_y))
        kept = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        if kept != image.size:
            image = image.resize(kept, Image.Resampling.BILINEAR, reducing_gap=3.0)
        across, down = kept[0] / width, kept[1] / height
        return Picture(
            image,
            self.boxes[index].xyxy * np.asarray([across, down, across, down], np.float32),
            self.boxes[index].labels,
            (place.scale_x / across, place.scale_y / down),
            (place.left, place.top),
        )

    def _size(self, one: Picture) -> int:
        return one.image.width * one.image.height * _BYTES_PER_PIXEL[one.image.mode]

    def augmenter(self, config: DetectionConfig) -> Augmenter:
        """What makes examples of these pictures."""
        return Augmenter(
            config,
            len(self),
            self.__getitem__,
            self.preprocess.size,
            self.preprocess.pad_value,
        )

    def batches(
        self, config: DetectionConfig, epoch: int, plan: IntArray, *, steps_before: int, multiple: int
    ) -> Iterator[Batch]:
        """The batches of an epoch, read ahead.

        Args:
            config: how pictures are changed.
            epoch: from 0.
            plan: indices ``[steps, B]``.
            steps_before: steps of the epochs before this one.
            multiple: what the sides of a batch are multiples of.
        """
        augment = self.augmenter(config)

        def make(step: int) -> Batch:
            size = input_size(config, self.preprocess.size, steps_before + step, multiple)
            return collate([augment(int(index), epoch, size) for index in plan[step]])

        return read_ahead(make, range(len(plan)), self.workers)


def collate(examples: list[Example]) -> Batch:
    """Examples of one size as a batch."""
    return Batch(
        np.stack([example.pixels for example in examples]),
        Targets.of_pictures([example.boxes for example in examples], [example.labels for example in examples]),
    )


@dataclass(frozen=True)
class Laid:
    """A picture as the preprocess lays it out: uint8 ``[H, W]`` or ``[H, W, 3]``, and where it lies."""

    pixels: UInt8Array
    placement: Placement


@dataclass(frozen=True)
class ValidationBatch:
    """Pictures exactly as `Preprocess` makes them.

    Attributes:
        inputs: float32 ``[B, C, H, W]``.
        placements: where each picture lies in the input.
        targets: its objects in pixels of the input.
    """

    inputs: torch.Tensor
    placements: list[Placement]
    targets: Targets


class ValidationPictures(BoxSource[Laid]):
    """Pictures as the deployed network will get them."""

    def _read(self, index: int) -> Laid:
        image, placement = self._geometry(index)
        return Laid(np.asarray(image), placement)

    def _size(self, one: Laid) -> int:
        return one.pixels.nbytes

    def batches(self, batch_size: int) -> Iterator[ValidationBatch]:
        """All pictures in order, read ahead."""
        starts = range(0, len(self), batch_size)
        return read_ahead(lambda start: self._batch(range(start, min(start + batch_size, len(self)))), starts,
                          self.workers)  # fmt: skip

    def _batch(self, indices: range) -> ValidationBatch:
        laid = [self[index] for index in indices]
        boxes = [one.placement.to_input(self.boxes[index].xyxy) for index, one in zip(indices, laid, strict=True)]
        inputs = np.stack([self.preprocess.normalize(one.pixels) for one in laid])
        return ValidationBatch(
            torch.from_numpy(inputs),
            [one.placement for one in laid],
            Targets.of_pictures(boxes, [self.boxes[index].labels for index in indices]),
        )


def _checked_boxes(dataset: Dataset, num_classes: int) -> list[Boxes]:
    if len(dataset) == 0:
        raise TrainingError(f"{dataset.name} has no pictures to train on")
    found = []
    for index in range(len(dataset)):
        sample = dataset[index]
        if sample.boxes is None:
            raise TrainingError(
                f"{dataset.name} has no boxes ({sample.name}); a detector needs COCO or VOC annotations"
            )
        labels = sample.boxes.labels
        if len(labels) and not (labels.min() >= 0 and labels.max() < num_classes):
            wrong = int(labels.min() if labels.min() < 0 else labels.max())
            raise DataError(
                f"{sample.name}: a box has the class index {wrong}, but the network's {num_classes} classes are 0 to "
                f"{num_classes - 1}; mend the annotations of {dataset.name} or give the network more classes"
            )
        found.append(sample.boxes)
    if not any(len(boxes.labels) for boxes in found):
        raise TrainingError(f"{dataset.name} has no object in any of its {len(dataset)} pictures")
    return found


def tell(line: str) -> None:
    """A line for the person who trains, beside the progress bar."""
    if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
        print(line, file=sys.stderr, flush=True)  # noqa: T201
