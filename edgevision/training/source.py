"""Pictures on their way to the network: the deployment's own geometry, kept as ``uint8``, read ahead by threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgevision.data.base import Dataset, Sample
from edgevision.errors import TrainingError
from edgevision.files import sha256_bytes
from edgevision.images import UInt8Array, to_image
from edgevision.preprocess import Float32Array, Preprocess
from edgevision.progress import Progress

# a set that is smaller at network size is decoded once and kept
CACHE_LIMIT = 512 * 1024 * 1024

IntArray = npt.NDArray[np.int64]
T = TypeVar("T")
P = TypeVar("P")


class Source(Protocol):
    """The pictures of a run, whatever is known of them."""

    @property
    def dataset(self) -> Dataset:
        """Where they come from."""
        ...

    @property
    def preprocess(self) -> Preprocess:
        """How they become the network's input."""
        ...

    @property
    def digest(self) -> str:
        """Hash that tells data sets apart."""
        ...

    def __len__(self) -> int: ...

    def fill_cache(self, description: str, *, show: bool = True) -> None:
        """Decode everything once, where it fits into memory."""
        ...


class ImageSource:
    """The pictures of a data set at network size, as ``uint8``, with their class indices.

    Threads read ahead rather than processes: Pillow and numpy let go of the interpreter's lock while they
    decode, resize and copy, and nothing has to be pickled or guarded by ``if __name__ == "__main__"``.

    Args:
        dataset: labelled pictures.
        preprocess: its `Preprocess.geometry` brings them to size, its `Preprocess.normalize` to float.
        workers: threads that read ahead; None for as many as help.
        cache_limit: bytes up to which all pictures are kept in memory.

    Raises:
        TrainingError: the data set is empty, unlabelled, or has a negative class index.
    """

    def __init__(
        self, dataset: Dataset, preprocess: Preprocess, *, workers: int | None = None, cache_limit: int = CACHE_LIMIT
    ) -> None:
        labels = dataset.labels
        if len(dataset) == 0:
            raise TrainingError(f"{dataset.name} has no pictures to train on")
        if labels is None:
            raise TrainingError(f"{dataset.name} has no class labels; classification needs one for every picture")
        if labels.min() < 0:
            raise TrainingError(f"{dataset.name} has the class index {labels.min()}; they must count from 0")
        self.dataset = dataset
        self.preprocess = preprocess
        self.labels: IntArray = np.asarray(labels, np.int64)
        height, width = preprocess.size
        self.shape = (height, width, preprocess.channels)
        self.cached = len(dataset) * int(np.prod(self.shape)) <= cache_limit
        self.workers = self._useful_workers() if workers is None else workers
        self._cache: UInt8Array | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def _useful_workers(self) -> int:
        # copies out of memory take microseconds; a thread for them only pays where a GPU does the rest
        if self.cached:
            return 1 if torch.cuda.is_available() else 0
        return min(8, os.cpu_count() or 1)

    @property
    def digest(self) -> str:
        """Hash of the labels and of 16 pictures spread over the set: enough to tell data sets apart."""
        chosen = np.unique(np.linspace(0, len(self) - 1, 16).round().astype(int)).tolist()
        pixels = b"".join(self._decode(self.dataset[index]).tobytes() for index in chosen)
        return sha256_bytes(self.labels.tobytes() + pixels)[:16]

    def pixels(self, indices: Sequence[int] | IntArray) -> UInt8Array:
        """Pictures ``[B, H, W, C]`` ``uint8`` in the order of ``indices``.

        Raises:
            DataError: a picture cannot be read.
        """
        if self._cache is not None:
            return np.asarray(self._cache[np.asarray(indices, np.int64)])
        return np.stack([self._decode(self.dataset[int(index)]) for index in indices])

    def fill_cache(self, description: str, *, show: bool = True) -> None:
        """Decode everything once, where it fits; does nothing otherwise or when it is done already.

        Raises:
            DataError: a picture cannot be read.
        """
        if not self.cached or self._cache is not None:
            return
        cache = np.empty((len(self), *self.shape), np.uint8)

        def decode(index: int) -> None:
            cache[index] = self._decode(self.dataset[index])

        # a set that is already in memory at its size is done before a bar could be drawn
        progress = Progress(description, len(self)) if show and len(self) > 5000 else None
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            if progress is None:
                deque(pool.map(decode, range(len(self))), maxlen=0)
            else:
                with progress:
                    for _ in pool.map(decode, range(len(self))):
                        progress.advance()
        self._cache = cache

    def _decode(self, sample: Sample) -> UInt8Array:
        pixels = np.asarray(self.preprocess.geometry(to_image(sample.image)))
        return pixels[:, :, None] if pixels.ndim == 2 else pixels

    def inputs(self, indices: IntArray) -> Float32Array:
        """Network inputs ``[B, C, H, W]``, exactly what `Preprocess` makes of the same pictures."""
        return np.stack([self.preprocess.normalize(picture) for picture in self.pixels(indices)])

    def read_ahead(self, work: Callable[[IntArray], T], plan: Iterable[IntArray]) -> Iterator[T]:
        """``work(indices)`` for every entry of ``plan``, in its order, computed ahead by the worker threads."""
        return read_ahead(work, plan, self.workers)


def read_ahead(work: Callable[[P], T], plan: Iterable[P], workers: int) -> Iterator[T]:
    """``work(part)`` for every part of ``plan``, in its order, computed ahead by so many threads; 0 for none."""
    if workers == 0:
        yield from map(work, plan)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="read-ahead") as pool:
        pending: deque[Future[T]] = deque()
        rest = iter(plan)
        try:
            for part in rest:
                pending.append(pool.submit(work, part))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:  # an error or Ctrl-C must not wait for batches nobody will use
            for future in pending:
                future.cancel()


class Normalizer:
    """`Preprocess.normalize` for a whole ``uint8`` batch, on the device that trains, to the same bits on a CPU.

    Args:
        preprocess: scale, mean, std and colour order.
        device: where the batch goes.
    """

    def __init__(self, preprocess: Preprocess, device: torch.device) -> None:
        gain = np.asarray([preprocess.scale / s for s in preprocess.std], np.float32)
        shift = np.asarray([-m / s for m, s in zip(preprocess.mean, preprocess.std, strict=True)], np.float32)
        self.gain = torch.from_numpy(gain).to(device)[None, :, None, None]
        self.shift = torch.from_numpy(shift).to(device)[None, :, None, None]
        self.reverse = preprocess.color == "BGR"
        self.device = device

    def __call__(self, pixels: UInt8Array, memory_format: torch.memory_format) -> Tensor:
        """``uint8`` ``[B, H, W, C]`` → float32 ``[B, C, H, W]`` on the device."""
        batch = torch.from_numpy(np.ascontiguousarray(pixels))
        if self.device.type == "cuda":
            batch = batch.pin_memory().to(self.device, non_blocking=True)
        batch = batch.permute(0, 3, 1, 2)
        if self.reverse:
            batch = batch.flip(1)
        return batch.to(torch.float32, memory_format=memory_format).mul_(self.gain).add_(self.shift)


def epoch_plan(seed: int, epoch: int, count: int, batch_size: int) -> IntArray:
    """Sample indices of an epoch ``[steps, batch_size]``: a permutation that follows from (seed, epoch).

    What does not fill a last batch is left out; the next epoch's permutation leaves out others.
    """
    order = np.random.default_rng([seed, epoch]).permutation(count)
    steps = count // batch_size
    return order[: steps * batch_size].reshape(steps, batch_size).astype(np.int64)
