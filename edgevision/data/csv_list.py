"""A CSV file that lists pictures and their labels."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgevision.data.base import Dataset
from edgevision.data.datasets import FileDataset
from edgevision.data.layout import (
    SPLIT_NAMES,
    check_split,
    choose_splits,
    existing,
    read_text,
    split_name,
    stays_inside,
)
from edgevision.errors import DataError

LABELS_FILE = "labels.csv"
CLASSES_FILE = "classes.csv"
_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
# what spreadsheets and data frames make of a column of integers with a gap in it
_FRACTION = re.compile(r"[+-]?(\d+\.\d*|\.\d+)([eE][+-]?\d+)?|nan", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Row:
    """One line of a CSV file: its number, from 1, and its cells by column name."""

    line: int
    cells: dict[str, str]


def open_csv(argument: str, split: str | None = None) -> Dataset:
    """Read a CSV file with a header line and at least the columns ``file`` and ``label``, or a folder's ``labels.csv``.

    Files are relative to the folder ``images/`` beside the CSV file, else to the CSV file's own folder, and may not
    leave it. Labels are all integers, 0 or more, or all class names. ``classes.csv`` beside it (columns ``name``
    and, unless the lines are in order, ``label``) names all classes; without it, class names are numbered in sorted
    order and integer labels stay nameless. A column ``split`` divides the set.

    Raises:
        DataError: a missing column or file, a bad label, a path that leaves the folder; names file and line.
    """
    check_split(split)
    path = existing(argument, "csv")
    if path.is_dir():
        path = existing(str(path / LABELS_FILE), "csv")
    rows = read_table(path, ("file", "label"))
    if not rows:
        raise DataError(f"{path}: lists no pictures, only a header line")
    labels, classes = _labels(path, rows)
    rows, labels, divided = _take_split(path, rows, labels, split)
    files = [_locate(path, row) for row in rows]
    return FileDataset(split_name(f"csv:{path}", split if divided else None), files, np.asarray(labels), classes)


def read_table(path: Path, columns: Sequence[str]) -> list[Row]:
    """Rows of a CSV file with a header line; blank lines are passed over, cells stripped.

    Raises:
        DataError: not CSV, not UTF-8, a column is missing, or a line has fewer cells than the header.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    header: list[str] = []
    rows: list[Row] = []
    try:
        for record in reader:
            cells = [cell.strip() for cell in record]
            if not any(cells):
                continue
            if not header:
                header = cells
                _check_header(path, reader.line_num, header, columns)
            elif len(cells) < len(header):
                raise DataError(f"{_at(path, reader.line_num)}: has {len(cells)} cells, expected {len(header)}")
            else:
                rows.append(Row(reader.line_num, dict(zip(header, cells, strict=False))))
    except csv.Error as error:
        raise DataError(f"{_at(path, reader.line_num)}: not CSV: {error}") from error
    if not header:
        raise DataError(f"{path}: is empty; expected a header line with {', '.join(columns)}")
    return rows


def _check_header(path: Path, line: int, header: Sequence[str], columns: Sequence[str]) -> None:
    for column in columns:
        if column not in header:
            raise DataError(f"{_at(path, line)}: the header has no column {column!r}; it has {', '.join(header)}")


def _at(path: Path, line: int) -> str:
    return f"{path}, line {line}"


def _labels(path: Path, rows: Sequence[Row]) -> tuple[list[int], tuple[str, ...]]:
    for row in rows:
        label = row.cells["label"]
        if not label or _FRACTION.fullmatch(label):
            raise DataError(f"{_at(path, row.line)}: bad label {label!r}: expected an integer or a class name")
    known = path.with_name(CLASSES_FILE)
    classes = read_classes(known) if known.is_file() else ()
    integers = [_INTEGER.fullmatch(row.cells["label"]) is not None for row in rows]
    if all(integers):
        return _integer_labels(path, rows, classes), classes
    if classes:
        return _named_labels(path, rows, classes), classes
    if any(integers):
        odd = rows[integers.index(not integers[0])]
        raise DataError(
            f"{_at(path, odd.line)}: label {odd.cells['label']!r} mixes integers with class names; "
            f"line {rows[0].line} has {rows[0].cells['label']!r}"
        )
    classes = tuple(sorted({row.cells["label"] for row in rows}))
    return _named_labels(path, rows, classes), classes


def _integer_labels(path: Path, rows: Sequence[Row], classes: tuple[str, ...]) -> list[int]:
    labels = []
    for row in rows:
        label = int(row.cells["label"])
        if label < 0 or label > np.iinfo(np.int32).max or (classes and label >= len(classes)):
            limit = f"0 to {len(classes) - 1}, as {CLASSES_FILE} beside it has them" if classes else "0 or more"
            raise DataError(f"{_at(path, row.line)}: bad label {label}: expected {limit}")
        labels.append(label)
    return labels


def _named_labels(path: Path, rows: Sequence[Row], classes: tuple[str, ...]) -> list[int]:
    index = {name: number for number, name in enumerate(classes)}
    twice = {name for name in index if classes.count(name) > 1}
    labels = []
    for row in rows:
        name = row.cells["label"]
        if name not in index:
            raise DataError(f"{_at(path, row.line)}: bad label {name!r}: no such name in {CLASSES_FILE} beside it")
        if name in twice:
            raise DataError(f"{_at(path, row.line)}: label {name!r} is the name of several classes; write its number")
        labels.append(index[name])
    return labels


def read_classes(path: Path) -> tuple[str, ...]:
    """Class names by index from a CSV file with a column ``name`` and perhaps ``label``.

    Raises:
        DataError: the labels are not 0 to K−1, each once; names file and line.
    """
    rows = read_table(path, ("name",))
    names: dict[int, str] = {}
    for position, row in enumerate(rows):
        label = row.cells.get("label", str(position))
        if not _INTEGER.fullmatch(label) or not 0 <= int(label) < len(rows):
            raise DataError(f"{_at(path, row.line)}: bad label {label!r}: expected 0 to {len(rows) - 1}")
        if int(label) in names:
            raise DataError(f"{_at(path, row.line)}: label {label} stands here a second time")
        names[int(label)] = row.cells["name"]
    if not names:
        raise DataError(f"{path}: names no classes, only a header line")
    return tuple(names[label] for label in range(len(names)))


def _take_split(path: Path, rows: list[Row], labels: list[int], split: str | None) -> tuple[list[Row], list[int], bool]:
    """Rows and labels of the split, and whether the file has a column that divides it at all."""
    if "split" not in rows[0].cells:
        return rows, labels, False
    for row in rows:
        if row.cells["split"] not in SPLIT_NAMES:
            raise DataError(
                f"{_at(path, row.line)}: bad split {row.cells['split']!r}: expected one of {', '.join(SPLIT_NAMES)}"
            )
    if split is None:
        return rows, labels, True
    chosen = choose_splits(path, split, {row.cells["split"] for row in rows})
    kept = [(row, label) for row, label in zip(rows, labels, strict=True) if row.cells["split"] in chosen]
    return [row for row, _ in kept], [label for _, label in kept], True


def _locate(path: Path, row: Row) -> str:
    name = row.cells["file"]
    if not stays_inside(name):
        raise DataError(f"{_at(path, row.line)}: file {name!r} must be a path inside {path.parent}")
    for folder in (path.parent / "images", path.parent):
        if (folder / name).is_file():
            return str(folder / name)
    raise DataError(f"{_at(path, row.line)}: no file {name!r} in {path.parent / 'images'} nor in {path.parent}")
