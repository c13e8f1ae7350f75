"""CIFAR-10 in its original binary layout.

A. Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009; cs.toronto.edu/~kriz/cifar.html.
A record is 3,073 bytes: the label, then 1,024 bytes each of red, green and blue, row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgevision.data.base import Dataset
from edgevision.data.datasets import ArrayDataset
from edgevision.data.layout import check_split, choose_splits, existing, read_bytes, read_text, split_name
from edgevision.errors import DataError

RECORD_BYTES = 1 + 3 * 32 * 32
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILE = "test_batch.bin"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_UNPACKED = "cifar-10-batches-bin"  # the folder that the official archive unpacks to


def is_cifar10(path: Path) -> bool:
    """Whether ``path`` is a folder of the binary layout, or holds the one the archive unpacks to."""
    return any((folder / TRAIN_FILES[0]).is_file() for folder in (path, path / _UNPACKED))


def open_cifar10(argument: str, split: str | None = None) -> Dataset:
    """Read a folder with ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin``, or one such file.

    Pictures are ``uint8`` ``[32, 32, 3]`` RGB. Only the files of the split are read; None reads training and test.
    Class names are those of ``batches.meta.txt``, or the ten official ones where it is absent.

    Raises:
        DataError: a file is missing, has a broken length or a label above 9.
    """
    check_split(split)
    path = existing(argument, "cifar10")
    if path.is_file():
        return _read(f"cifar10:{path}", [path], _class_names(path.parent))
    folder = path / _UNPACKED if not (path / TEST_FILE).exists() and (path / _UNPACKED).is_dir() else path
    parts = {"train": TRAIN_FILES, "test": (TEST_FILE,)}
    files = [folder / file for part in choose_splits(path, split, parts) for file in parts[part]]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise DataError(f"{folder}: {', '.join(missing)} not found{_pickle_hint(folder)}")
    return _read(split_name(f"cifar10:{path}", split), files, _class_names(folder))


def _pickle_hint(folder: Path) -> str:
    if (folder / "data_batch_1").exists():
        return "; this is the Python version of CIFAR-10, which is pickled and is not read: take the binary version"
    return "; expected the files of the binary version of CIFAR-10"


def _read(name: str, files: Sequence[Path], classes: tuple[str, ...]) -> ArrayDataset:
    records = [_read_records(file, len(classes)) for file in files]
    joined = records[0] if len(records) == 1 else np.concatenate(records)
    images = joined[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # [N, H, W, 3], a view
    source = files[0].name if len(files) == 1 else files[0].parent.name
    return ArrayDataset(name, images, joined[:, 0].astype(np.int64), classes, source=source)


def _read_records(path: Path, num_classes: int) -> npt.NDArray[np.uint8]:
    data = read_bytes(path)
    over = len(data) % RECORD_BYTES
    if not data or over:
        found = f"{over:,} bytes over {len(data) // RECORD_BYTES:,} whole records" if data else "it is empty"
        raise DataError(
            f"{path}: {len(data):,} bytes is not a multiple of the {RECORD_BYTES:,} bytes of a record: {found}; "
            f"the file is cut short or not CIFAR-10"
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, RECORD_BYTES)
    wrong = np.flatnonzero(records[:, 0] >= num_classes)
    if len(wrong):
        first = int(wrong[0])
        raise DataError(
            f"{path}: record {first} (byte {first * RECORD_BYTES:,}) has label {records[first, 0]}, "
            f"expected 0 to {num_classes - 1}"
        )
    return records


def _class_names(folder: Path) -> tuple[str, ...]:
    path = folder / "batches.meta.txt"
    if not path.is_file():
        return CLASSES
    names = tuple(read_text(path).split())
    if len(names) != len(CLASSES):
        raise DataError(f"{path}: has {len(names)} class names, expected {len(CLASSES)}, one a line")
    return names
