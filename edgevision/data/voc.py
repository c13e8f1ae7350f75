"""Object annotations in the XML form of PASCAL VOC (Everingham et al., IJCV 2010)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree.ElementTree import TreeBuilder
from xml.parsers import expat

import numpy as np

from edgevision.data.base import Boxes, Dataset
from edgevision.data.boxes import BoxCheck, picture_size
from edgevision.data.datasets import DetectionDataset
from edgevision.data.layout import (
    MAX_COORDINATE,
    SPLIT_NAMES,
    check_split,
    choose_splits,
    existing,
    is_image,
    read_bytes,
    read_text,
    split_name,
)
from edgevision.errors import DataError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element


def is_voc(folder: Path) -> bool:
    """Whether ``folder`` has the VOC layout."""
    return (folder / "JPEGImages").is_dir() and (folder / "Annotations").is_dir()


def open_voc(argument: str, split: str | None = None) -> Dataset:
    """Read a folder with ``JPEGImages/``, ``Annotations/`` and perhaps ``ImageSets/Main/{train,val,test}.txt``.

    Classes are the sorted names of all objects of all splits, so that every split numbers them alike. Coordinates
    are the numbers of the XML, cut to the picture where its size is given. Boxes without area or outside the picture
    are left out and counted. None reads every annotation there is.

    Returns:
        A `DetectionDataset`.

    Raises:
        DataError: malformed XML or a missing or wrong value (names file and line), a missing picture or annotation.
    """
    check_split(split)
    path = existing(argument, "voc")
    if not is_voc(path):
        raise DataError(f"{path}: not the VOC layout: expected folders JPEGImages and Annotations")
    pictures = [_read_picture(file) for file in sorted((path / "Annotations").glob("*.xml"))]
    if not pictures:
        raise DataError(f"{path / 'Annotations'}: holds no .xml file")
    classes = tuple(sorted({name for picture in pictures for name in picture.names}))
    by_id = {picture.path.stem: picture for picture in pictures}
    lists = {name: path / "ImageSets" / "Main" / f"{name}.txt" for name in SPLIT_NAMES}
    available = {name: file for name, file in lists.items() if file.is_file()}
    chosen, part = list(by_id), None
    if available and split is not None:
        part = choose_splits(path, split, available)[0]
        chosen = _read_ids(available[part], by_id)
    return _dataset(split_name(f"voc:{path}", part), path / "JPEGImages", [by_id[key] for key in chosen], classes)


@dataclass(frozen=True)
class _Picture:
    """One annotation file: names and corners of its objects, bad boxes apart."""

    path: Path
    names: list[str]
    corners: list[list[float]]
    check: BoxCheck


def _dataset(name: str, images: Path, pictures: list[_Picture], classes: tuple[str, ...]) -> DetectionDataset:
    index = {class_name: number for number, class_name in enumerate(classes)}
    present = {Path(file.name).stem: str(file) for file in sorted(images.iterdir()) if is_image(file.name)}
    for picture in pictures:
        if picture.path.stem not in present:
            raise DataError(f"{picture.path}: its picture {picture.path.stem}.jpg is not in {images}")
    boxes = [
        Boxes(
            np.asarray(picture.corners, np.float32).reshape(-1, 4),
            np.asarray([index[class_name] for class_name in picture.names], np.int64),
        )
        for picture in pictures
    ]
    return DetectionDataset(
        name=name,
        files=[present[picture.path.stem] for picture in pictures],
        boxes=boxes,
        classes=classes,
        category_ids=tuple(range(len(classes))),
        image_ids=[picture.path.stem for picture in pictures],
        skipped_boxes=sum(picture.check.empty for picture in pictures),
        outside_boxes=sum(picture.check.outside for picture in pictures),
        clipped_boxes=sum(picture.check.clipped for picture in pictures),
    )


def _read_ids(path: Path, by_id: dict[str, _Picture]) -> list[str]:
    chosen = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        key = line.split()[0]  # the lists of one class have a second column, which is not read
        if key not in by_id:
            raise DataError(f"{path}, line {number}: no annotation {key}.xml")
        chosen.append(key)
    if not chosen:
        raise DataError(f"{path}: lists no pictures")
    return chosen


class _Reader:
    """Parses one XML file and remembers on which line every element begins, which ElementTree does not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._builder = TreeBuilder()
        self._lines: dict[Element, int] = {}
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._builder.end
        self._parser.CharacterDataHandler = self._builder.data

    def parse(self) -> Element:
        data = read_bytes(self.path)
        try:
            self._parser.Parse(data, True)
        except expat.ExpatError as error:
            raise DataError(
                f"{self.path}, line {error.lineno}: malformed XML: {expat.errors.messages[error.code]} "
                f"(column {error.offset + 1})"
            ) from error
        except (LookupError, ValueError) as error:
            raise DataError(f"{self.path}: malformed XML: the encoding it names cannot be read: {error}") from error
        return self._builder.close()

    def text(self, parent: Element, tag: str) -> str:
        child = parent.find(tag)
        value = "" if child is None or child.text is None else child.text.strip()
        if not value:
            raise self.error(parent if child is None else child, f"<{parent.tag}> has no <{tag}>")
        return value

    def number(self, parent: Element, tag: str) -> float:
        text = self.text(parent, tag)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not abs(value) <= MAX_COORDINATE:  # true for NaN too
            child = parent.find(tag)
            assert child is not None
            raise self.error(child, f"<{tag}> must be a number; got {text!r}")
        return value

    def error(self, element: Element, message: str) -> DataError:
        return DataError(f"{self.path}, line {self._lines[element]}: {message}")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._lines[self._builder.start(tag, attributes)] = self._parser.CurrentLineNumber


def _read_picture(path: Path) -> _Picture:
    reader = _Reader(path)
    root = reader.parse()
    if root.tag != "annotation":
        raise reader.error(root, f"expected <annotation>; got <{root.tag}>")
    names, corners, check = [], [], BoxCheck()
    size = _size(root)
    for item in root.findall("object"):
        name = reader.text(item, "name")
        box = item.find("bndbox")
        if box is None:
            raise reader.error(item, "<object> has no <bndbox>")
        inside = check.fit([reader.number(box, tag) for tag in ("xmin", "ymin", "xmax", "ymax")], size)
        if inside is not None:
            names.append(name)
            corners.append(inside)
    return _Picture(path, names, corners, check)


def _size(root: Element) -> tuple[float, float] | None:
    """Width and height of the picture; some tools write none, or 0."""
    try:
        return picture_size(*(float(root.findtext(f"size/{tag}", "")) for tag in ("width", "height")))
    except ValueError:
        return None
