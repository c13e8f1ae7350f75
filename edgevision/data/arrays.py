"""Pictures as arrays in ``.npz`` files."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevision.data.base import Dataset
from edgevision.data.datasets import ArrayDataset, Labels, joined
from edgevision.data.layout import SPLIT_NAMES, check_split, choose_splits, existing
from edgevision.errors import DataError


def npz_parts(folder: Path) -> dict[str, Path]:
    """Files of a folder that are named after a split: ``train.npz``, ``test.npz`` …"""
    paths = {name: folder / f"{name}.npz" for name in SPLIT_NAMES}
    return {name: path for name, path in paths.items() if path.is_file()}


def open_npz(argument: str, split: str | None = None) -> Dataset:
    """Read one ``.npz`` file, which is the whole set, or a folder with ``train.npz`` and ``test.npz``.

    A file holds ``images`` uint8 ``[N, H, W, 3]`` (RGB) or ``[N, H, W]`` (grey), and may hold ``labels``, integers
    ``[N]``, and ``classes``, strings ``[K]``. Nothing is unpickled.

    Raises:
        DataError: the file is damaged, or an array is missing or of another shape, type or range.
    """
    check_split(split)
    path = existing(argument, "npz")
    if path.is_file():
        return _read(path, f"npz:{path}")
    parts = npz_parts(path)
    if not parts:
        raise DataError(f"{path}: holds neither train.npz nor test.npz; name a .npz file")
    files = [parts[name] for name in choose_splits(path, split, parts)]
    return joined(f"npz:{path}", [_read(file, f"npz:{file}") for file in files])


def _read(path: Path, name: str) -> ArrayDataset:
    arrays = _load(path)
    images = _check_images(path, arrays)
    labels = _check_labels(path, arrays, len(images))
    classes = _check_classes(path, arrays)
    if labels is not None and classes and labels.max() >= len(classes):
        first = int(np.flatnonzero(labels >= len(classes))[0])
        raise DataError(f"{path}: labels[{first}] is {labels[first]}, expected 0 to {len(classes) - 1} for its classes")
    return ArrayDataset(name, images, labels, classes, source=path.name)


def _load(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        # opened here, since numpy leaves a file that it opened itself open when the archive is damaged
        with path.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise DataError(f"{path}: holds a single array, expected an .npz archive with images and labels")
            return {key: archive[key] for key in ("images", "labels", "classes") if key in archive.files}
    except (OSError, ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as .npz without pickle: {error}") from error


def _check_images(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.uint8]:
    if "images" not in arrays:
        raise DataError(f"{path}: has no array 'images'")
    images = arrays["images"]
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[:, :, :, 0]
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
        raise DataError(
            f"{path}: images must be uint8 of shape [N, H, W, 3] or [N, H, W]; got {images.dtype} {list(images.shape)}"
        )
    if images.size == 0:
        raise DataError(f"{path}: images is empty: shape {list(images.shape)}")
    return images


def _check_labels(path: Path, arrays: dict[str, npt.NDArray[Any]], count: int) -> Labels | None:
    if "labels" not in arrays:
        return None
    labels = arrays["labels"]
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise DataError(
            f"{path}: labels must be integers of shape [{count}], one per image; "
            f"got {labels.dtype} {list(labels.shape)}"
        )
    wrong = np.flatnonzero((labels < 0) | (labels > np.iinfo(np.int32).max))
    if len(wrong):
        raise DataError(f"{path}: labels[{wrong[0]}] is {labels[wrong[0]]}, expected a class index of 0 or more")
    return labels.astype(np.int64)


def _check_classes(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> tuple[str, ...]:
    if "classes" not in arrays:
        return ()
    classes = arrays["classes"]
    if classes.ndim != 1 or classes.dtype.kind != "U":
        raise DataError(f"{path}: classes must be strings of shape [K]; got {classes.dtype} {list(classes.shape)}")
    return tuple(str(name) for name in classes)
