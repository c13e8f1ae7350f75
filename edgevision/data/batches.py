"""Data set in, network inputs out: the way calibration and evaluation both take."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from edgevision.data.base import Dataset
from edgevision.errors import DataError, UsageError
from edgevision.images import ImageLike

Float32Array: TypeAlias = "npt.NDArray[np.float32]"
Int64Array: TypeAlias = "npt.NDArray[np.int64]"
_Prepared: TypeAlias = "tuple[Float32Array, int | None]"


def batches(
    dataset: Dataset, preprocess: Callable[[ImageLike], Float32Array], batch_size: int, *, workers: int = 0
) -> Iterator[tuple[Float32Array, Int64Array | None]]:
    """Yield ``(images, labels)`` in the data set's order: float32 ``[B, C, H, W]``, int64 ``[B]`` or None.

    Args:
        dataset: where samples come from.
        preprocess: a `Preprocess`, or anything that makes one picture into float32 of one shape. With the layout
            ``NHWC`` the batches are ``[B, H, W, C]``.
        batch_size: B; the last batch may be smaller.
        workers: threads that decode ahead of the consumer; 0 decodes when a batch is asked for. At most about one
            batch of prepared pictures waits, whatever the size of the data set.

    Raises:
        UsageError: ``batch_size`` below 1 or ``workers`` below 0.
        DataError: a damaged picture, by its name; raised when its batch is asked for.
    """
    if batch_size < 1:
        raise UsageError(f"batch_size must be 1 or more; got {batch_size}")
    if workers < 0:
        raise UsageError(f"workers must be 0 or more; got {workers}")
    return _batches(dataset, preprocess, batch_size, workers)


def _batches(
    dataset: Dataset, preprocess: Callable[[ImageLike], Float32Array], batch_size: int, workers: int
) -> Iterator[tuple[Float32Array, Int64Array | None]]:
    def prepare(index: int) -> _Prepared:
        return _prepare(dataset, preprocess, index)

    if workers == 0:
        yield from _grouped(map(prepare, range(len(dataset))), batch_size)
        return
    executor = ThreadPoolExecutor(workers, thread_name_prefix="edgevision-data")
    try:
        yield from _grouped(_ahead(executor, prepare, len(dataset), max(batch_size, 2 * workers)), batch_size)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)  # the consumer may have stopped early


def _prepare(dataset: Dataset, preprocess: Callable[[ImageLike], Float32Array], index: int) -> _Prepared:
    sample = dataset[index]
    try:
        return preprocess(sample.image), sample.label
    except DataError as error:
        if sample.name in str(error):
            raise
        raise DataError(f"{sample.name}: {error}") from error
    except (OSError, SyntaxError) as error:  # what Pillow raises for a damaged image that was opened elsewhere
        raise DataError(f"{sample.name}: cannot be read as an image: {error}") from error


def _ahead(
    executor: ThreadPoolExecutor, prepare: Callable[[int], _Prepared], count: int, window: int
) -> Iterator[_Prepared]:
    """Results in order, with at most ``window`` of them begun and not yet taken."""
    begun: deque[Future[_Prepared]] = deque()
    for index in range(count):
        if len(begun) == window:
            yield begun.popleft().result()
        begun.append(executor.submit(prepare, index))
    while begun:
        yield begun.popleft().result()


def _grouped(prepared: Iterator[_Prepared], batch_size: int) -> Iterator[tuple[Float32Array, Int64Array | None]]:
    images: list[Float32Array] = []
    labels: list[int | None] = []
    for image, label in prepared:
        images.append(image)
        labels.append(label)
        if len(images) == batch_size:
            yield np.stack(images), _known(labels)
            images, labels = [], []
    if images:
        yield np.stack(images), _known(labels)


def _known(labels: list[int | None]) -> Int64Array | None:
    present = [label for label in labels if label is not None]
    return np.asarray(present, np.int64) if len(present) == len(labels) else None
