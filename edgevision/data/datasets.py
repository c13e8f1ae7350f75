"""The two shapes most data sets take once read: a list of files, and an array of pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgevision.data.base import Boxes, Dataset, Sample, Subset
from edgevision.errors import DataError

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class FileDataset:
    """Pictures in files, decoded only when used.

    Attributes:
        name: where it came from.
        files: path of every picture.
        labels: int64 ``[N]``: class index of every picture; None where unknown.
        classes: class names by index; empty where unknown.
    """

    name: str
    files: Sequence[str]
    labels: Labels | None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        file = self.files[index]
        return Sample(Path(file), name=file, label=None if self.labels is None else int(self.labels[index]))

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True, eq=False)
class DetectionDataset:
    """Pictures in files with the objects in them.

    Attributes:
        name: where it came from.
        files: path of every picture.
        boxes: objects of every picture.
        classes: class names by index.
        category_ids: the annotation file's own id of every class, by index; for VOC the indices themselves.
        image_ids: the annotation file's own id of every picture.
        skipped_boxes: how many boxes were left out because they are empty (no width or no height).
        skipped_crowds: how many boxes were left out because they mark a crowd, not one object (COCO's ``iscrowd``).
        outside_boxes: how many boxes were left out because they lie outside their picture.
        clipped_boxes: how many boxes were cut to their picture, which they left by more than a pixel.
        crowds: the crowd regions of every picture, boxes and classes; empty where the annotations know of none.
    """

    name: str
    files: Sequence[str]
    boxes: Sequence[Boxes]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_ids: Sequence[int | str]
    skipped_boxes: int = 0
    skipped_crowds: int = 0
    outside_boxes: int = 0
    clipped_boxes: int = 0
    crowds: Sequence[Boxes] = ()

    @property
    def labels(self) -> Labels | None:
        """None: a picture with objects has no class of its own."""
        return None

    @property
    def complaint(self) -> str:
        """What is wrong with the boxes, in a line: ``"instances.json: left out 2 boxes without area"``; or nothing."""
        left_out = [
            f"{count} {what}"
            for count, what in ((self.skipped_boxes, "without area"), (self.outside_boxes, "outside their picture"))
            if count
        ]
        parts = [f"left out boxes: {', '.join(left_out)}"] if left_out else []
        parts += [f"cut {self.clipped_boxes} boxes to their picture"] if self.clipped_boxes else []
        return f"{self.name}: {'; '.join(parts)}" if parts else ""

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        file = self.files[index]
        return Sample(Path(file), name=file, boxes=self.boxes[index])

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True, eq=False)
class ArrayDataset:
    """Pictures of one size, in memory.

    Attributes:
        name: where it came from.
        images: uint8 ``[N, H, W, 3]`` (RGB) or ``[N, H, W]`` (grey).
        labels: int64 ``[N]``: class index of every picture; None where unknown.
        classes: class names by index; empty where unknown.
        source: what sample names begin with: ``"test.npz"`` gives ``"test.npz[17]"``.
    """

    name: str
    images: npt.NDArray[np.uint8]
    labels: Labels | None
    classes: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        position = range(len(self.images))[index]  # numpy would take more than one integer for an index
        label = None if self.labels is None else int(self.labels[position])
        # a copy, so that augmenting in place cannot change the data set
        return Sample(self.images[position].copy(), name=f"{self.source}[{position}]", label=label)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


class Concatenation:
    """Several data sets of the same classes, one after the other.

    Args:
        name: where it came from.
        parts: the data sets, at least one.

    Raises:
        DataError: the parts number their classes differently.
    """

    def __init__(self, name: str, parts: Sequence[Dataset]) -> None:
        self.name = name
        self.parts = tuple(parts)
        self.classes = self.parts[0].classes
        for part in self.parts[1:]:
            if part.classes != self.classes:
                raise DataError(
                    f"{part.name}: has other classes than {self.parts[0].name} "
                    f"({len(part.classes)} and {len(self.classes)}); open the two one by one"
                )
        self._ends = np.cumsum([len(part) for part in self.parts])
        known = [part.labels for part in self.parts]
        present = [labels for labels in known if labels is not None]
        self.labels: Labels | None = np.concatenate(present) if len(present) == len(known) else None

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Sample:
        position = range(len(self))[index]
        part = int(np.searchsorted(self._ends, position, side="right"))
        return self.parts[part][position - int(self._ends[part])]

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


def joined(name: str, parts: Sequence[Dataset]) -> Dataset:
    """The only part, or all of them one after the other."""
    return parts[0] if len(parts) == 1 else Concatenation(name, parts)


def complaints(dataset: Dataset) -> list[str]:
    """What is wrong with the boxes of a data set's annotation files, a line for each file that gives cause."""
    if isinstance(dataset, Subset):
        return complaints(dataset.dataset)
    if isinstance(dataset, Concatenation):
        return [line for part in dataset.parts for line in complaints(part)]
    return [dataset.complaint] if isinstance(dataset, DetectionDataset) and dataset.complaint else []


def crowd_regions(dataset: Dataset) -> list[Boxes | None]:
    """Crowd regions of every picture, in the data set's order; None where there are none."""
    if isinstance(dataset, Subset):
        every = crowd_regions(dataset.dataset)
        return [every[index] for index in dataset.indices]
    if isinstance(dataset, Concatenation):
        return [region for part in dataset.parts for region in crowd_regions(part)]
    if isinstance(dataset, DetectionDataset) and dataset.crowds:
        return list(dataset.crowds)
    return [None] * len(dataset)
