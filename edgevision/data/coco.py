"""Object annotations in the JSON form of COCO (Lin et al., *Microsoft COCO*, ECCV 2014; cocodataset.org)."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgevision.data.base import Boxes, Dataset
from edgevision.data.boxes import BoxCheck, picture_size
from edgevision.data.datasets import DetectionDataset, joined
from edgevision.data.layout import (
    MAX_COORDINATE,
    SPLIT_NAMES,
    check_split,
    choose_splits,
    existing,
    read_text,
    stays_inside,
)
from edgevision.errors import DataError


def open_coco(argument: str, split: str | None = None, *, images: str | Path | None = None) -> Dataset:
    """Read a COCO JSON file, or a folder (or its ``annotations/``) with ``instances*.json`` files named by split.

    Args:
        argument: the file or the folder.
        split: which of a folder's files, by the split in its name: ``instances_train.json``,
            ``instances_val2017.json``.
        images: folder of the pictures. By default the first of these that holds the first picture: ``images/`` and
            ``JPEGImages/`` beside the file, its own folder, the same three one level up, and there also the folder
            named like the end of the file's name (``val2017/`` for ``instances_val2017.json``), in ``images/`` or not.

    Returns:
        A `DetectionDataset`: categories are renumbered from 0 in the order of their ids, boxes are
        ``[left, top, right, bottom]``, cut to the picture where its size is given. Boxes without area or outside the
        picture are left out and counted; crowd regions are kept apart.

    Raises:
        DataError: damaged JSON (names the line), an unknown id (names the annotation), a missing picture.
    """
    check_split(split)
    path = existing(argument, "coco")
    folder = None if images is None else existing(str(images), "images")
    if path.is_file():
        return _read(path, folder)
    parts = coco_parts(path)
    if not parts:
        raise DataError(f"{path}: holds no instances*.json, nor does its annotations folder; name the file itself")
    if "" in parts:
        return _read(parts[""], folder)
    return joined(f"coco:{path}", [_read(parts[name], folder) for name in choose_splits(path, split, parts)])


def coco_parts(folder: Path) -> dict[str, Path]:
    """Annotation files of a folder by split; a single file that names no split is under ``""``.

    Raises:
        DataError: two files for one split.
    """
    files = sorted([*folder.glob("instances*.json"), *folder.glob("annotations/instances*.json")])
    parts: dict[str, Path] = {}
    for file in files:
        words = re.split(r"[^a-z]+", file.stem.lower())
        name = next((split for split in SPLIT_NAMES if split in words), "")
        if name in parts:
            raise DataError(f"{folder}: both {parts[name].name} and {file.name} could be meant; name the file itself")
        parts[name] = file
    # files with a split in their name go before one without, which then holds the same pictures again
    return {name: file for name, file in parts.items() if name} or parts


def _read(path: Path, folder: Path | None) -> DetectionDataset:
    document = _load(path)
    images = _index(path, document, "images")
    categories = _index(path, document, "categories")
    if not images:
        raise DataError(f"{path}: lists no images")
    category_ids = _category_ids(path, categories)
    file_names = {key: _text(path, f"image {key}", record, "file_name") for key, record in images.items()}
    sizes = {key: picture_size(record.get("width"), record.get("height")) for key, record in images.items()}
    objects = _Objects(path, sizes, {key: index for index, key in enumerate(category_ids)})
    for annotation in _records(path, document, "annotations"):
        objects.add(annotation)
    folder = folder or _image_folder(path, next(iter(file_names.values())))
    return DetectionDataset(
        name=f"coco:{path}",
        files=[_locate(path, folder, key, name) for key, name in file_names.items()],
        boxes=[objects.boxes(key) for key in images],
        classes=tuple(_text(path, f"category {key}", categories[key], "name") for key in category_ids),
        category_ids=tuple(category_ids),
        image_ids=list(images),
        skipped_boxes=objects.check.empty,
        skipped_crowds=objects.crowds,
        outside_boxes=objects.check.outside,
        clipped_boxes=objects.check.clipped,
        crowds=[objects.boxes(key, crowds=True) for key in images] if objects.crowds else (),
    )


def _load(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: damaged JSON: {error.msg} (column {error.colno})") from error
    except (RecursionError, ValueError) as error:  # nested too deep; a number of thousands of digits
        raise DataError(f"{path}: damaged JSON: {error}") from error
    if not isinstance(document, dict):
        raise DataError(f"{path}: expected a JSON object with images, annotations and categories")
    return document


def _records(path: Path, document: dict[str, Any], key: str) -> list[dict[str, Any]]:
    records = document.get(key)
    if not isinstance(records, list):
        raise DataError(f"{path}: has no list {key!r}; is it a COCO instances file?")
    for position, record in enumerate(records):
        if not isinstance(record, dict):
            raise DataError(f"{path}: {key}[{position}] is no JSON object")
    return records


def _index(path: Path, document: dict[str, Any], key: str) -> dict[Any, dict[str, Any]]:
    indexed: dict[Any, dict[str, Any]] = {}
    for position, record in enumerate(_records(path, document, key)):
        identity = record.get("id")
        if not isinstance(identity, (int, str)):
            raise DataError(f"{path}: {key}[{position}] has no id")
        if identity in indexed:
            raise DataError(f"{path}: {key}[{position}] has the id {identity} of an earlier one")
        indexed[identity] = record
    return indexed


def _category_ids(path: Path, categories: dict[Any, dict[str, Any]]) -> list[int]:
    for key in categories:
        if not isinstance(key, int):
            raise DataError(f"{path}: category id {key!r} is no integer")
    return sorted(categories)


def _text(path: Path, what: str, record: dict[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value:
        raise DataError(f"{path}: {what} has no {key}")
    return value


@dataclass
class _Objects:
    """Boxes by picture, checked as they come in."""

    path: Path
    sizes: dict[Any, tuple[float, float] | None]
    category_index: dict[int, int]

    def __post_init__(self) -> None:
        self.check = BoxCheck()
        self.crowds = 0
        self._found: dict[tuple[Any, bool], list[tuple[list[float], int]]] = {}

    def add(self, annotation: dict[str, Any]) -> None:
        where = f"{self.path}: annotation {annotation.get('id')}"
        image, category, box = (annotation.get(key) for key in ("image_id", "category_id", "bbox"))
        if not isinstance(image, Hashable) or image not in self.sizes:
            raise DataError(f"{where}: image_id {image!r} is none of the {len(self.sizes)} images")
        if not isinstance(category, int) or category not in self.category_index:
            raise DataError(f"{where}: category_id {category!r} is none of the {len(self.category_index)} categories")
        left, top, width, height = _numbers(where, box)
        corners = self.check.fit([left, top, left + width, top + height], self.sizes[image])
        crowd = bool(annotation.get("iscrowd"))
        self.crowds += crowd
        if corners is not None:
            self._found.setdefault((image, crowd), []).append((corners, self.category_index[category]))

    def boxes(self, image: Any, *, crowds: bool = False) -> Boxes:
        found = self._found.get((image, crowds), [])
        corners = np.asarray([corner for corner, _ in found], np.float32).reshape(-1, 4)
        return Boxes(corners, np.asarray([label for _, label in found], np.int64))


def _numbers(where: str, box: Any) -> list[float]:
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, (int, float)) for value in box):
        raise DataError(f"{where}: bbox must be [left, top, width, height]; got {box!r}")
    if not all(abs(value) <= MAX_COORDINATE for value in box):  # false for NaN too
        raise DataError(f"{where}: bbox must be numbers of pixels; got {box!r}")
    return [float(value) for value in box]


def _image_folder(path: Path, first: str) -> Path:
    here, above, ending = path.parent, path.parent.parent, path.stem.rpartition("_")[2]
    candidates = [here / "images", here / "JPEGImages", here, above / "images", above / "JPEGImages", above]
    candidates += [above / ending, above / "images" / ending]
    for folder in candidates:
        if (folder / first).is_file():
            return folder
    listed = ", ".join(str(folder) for folder in candidates)
    raise DataError(f"{path}: its first picture {first!r} is in none of {listed}")


def _locate(path: Path, folder: Path, image: Any, name: str) -> str:
    if not stays_inside(name):
        raise DataError(f"{path}: image {image}: file_name {name!r} must be a path inside the image folder")
    if not (folder / name).is_file():
        raise DataError(f"{path}: image {image}: no file {name!r} in {folder}")
    return str(folder / name)
