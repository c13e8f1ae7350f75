"""What a data set is: numbered pictures with what is known of them. numpy and Pillow only: devices use it too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from edgevision.errors import UsageError
from edgevision.images import ImageLike


@dataclass(frozen=True)
class Boxes:
    """Objects of one picture.

    Attributes:
        xyxy: float32 ``[N, 4]``: left, top, right, bottom in pixels of the original picture.
        labels: int64 ``[N]``: index into the data set's classes.
    """

    xyxy: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sample:
    """One picture.

    Attributes:
        image: path, PIL image, or ``uint8`` array ``[H, W, 3]`` (RGB) or ``[H, W]`` (grey); decoded only when used.
        label: class index; None where unknown.
        boxes: objects; None where unknown.
        name: what to call it in messages: a path or ``"digits[17]"``.
    """

    image: ImageLike
    name: str
    label: int | None = None
    boxes: Boxes | None = None


@runtime_checkable
class Dataset(Protocol):
    """A fixed sequence of samples; ``dataset[i]`` is cheap and the same every time."""

    @property
    def name(self) -> str:
        """Where it came from, e.g. ``"csv:photos/labels.csv"``."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by index; empty where unknown."""
        ...

    @property
    def labels(self) -> npt.NDArray[np.int64] | None:
        """Class index of every sample ``[N]``; None for unlabelled pictures or boxes."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


class Subset:
    """Chosen samples of a data set, in the order given.

    Args:
        dataset: where they are taken from; stays reachable as ``subset.dataset``.
        indices: which ones; one may come more than once.
        name: what to call the subset; by default what the data set is called.
    """

    def __init__(self, dataset: Dataset, indices: Sequence[int], *, name: str | None = None) -> None:
        self.dataset = dataset
        self._indices = [int(index) for index in indices]
        self.name = dataset.name if name is None else name
        self.classes = dataset.classes

    @property
    def indices(self) -> tuple[int, ...]:
        """Which samples of ``dataset`` these are."""
        return tuple(self._indices)

    @property
    def labels(self) -> npt.NDArray[np.int64] | None:
        """Class index of every chosen sample ``[N]``, where known."""
        labels = self.dataset.labels
        return None if labels is None else labels[self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[self._indices[index]]

    def __iter__(self) -> Iterator[Sample]:
        return (self.dataset[index] for index in self._indices)


def evenly_spaced(dataset: Dataset, count: int | None) -> Subset:
    """``count`` samples spread evenly over the data set (all of them for None): class-sorted sets stay balanced.

    Raises:
        UsageError: ``count`` is below 1.
    """
    if count is not None and count < 1:
        raise UsageError(f"the number of samples must be 1 or more; got {count}")
    total = len(dataset)
    if count is None or count >= total:
        return Subset(dataset, range(total))
    return Subset(dataset, np.linspace(0, total - 1, count).round().astype(int).tolist())
