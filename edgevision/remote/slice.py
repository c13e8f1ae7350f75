"""A small slice of a data set as plain files: pictures as they are, labels as CSV, objects as COCO JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgevision.data.base import Boxes, Dataset, Sample, evenly_spaced
from edgevision.data.datasets import crowd_regions
from edgevision.errors import DataError
from edgevision.files import sha256_bytes, sha256_file
from edgevision.images import ImageLike

# pictures where nobody said how many: two minutes of a slow board, and accuracy to a few points
DEFAULT_PICTURES = 200
FOLDER = "data"


@dataclass(frozen=True)
class JobFile:
    """One file of a job.

    Attributes:
        path: where it goes, below the job's folder, with ``/``.
        size: bytes.
        sha256: of the content.
        source: file it is read from, or the content.
    """

    path: str
    size: int
    sha256: str
    source: Path | bytes

    @classmethod
    def of(cls, path: str, source: Path | bytes) -> JobFile:
        """Measure and hash the content.

        Raises:
            DataError: the file cannot be read.
        """
        if isinstance(source, bytes):
            return cls(path, len(source), sha256_bytes(source), source)
        try:
            return cls(path, source.stat().st_size, sha256_file(source), source)
        except OSError as error:
            raise DataError(f"{source}: cannot be read: {error.strerror}") from error

    def pieces(self, size: int = 1 << 16) -> Iterator[bytes]:
        """The content, piece by piece."""
        stream = io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source.open("rb")
        with stream:
            while piece := stream.read(size):
                yield piece


@dataclass(frozen=True)
class DataSlice:
    """Some samples of a data set, ready to be copied.

    Attributes:
        files: pictures and what is known of them.
        spec: what the device opens, e.g. ``csv:data/labels.csv``.
        name: the data set's own name.
        count: how many pictures.
        total: of how many.
    """

    files: tuple[JobFile, ...]
    spec: str
    name: str
    count: int
    total: int


def take_slice(dataset: Dataset, limit: int | None) -> DataSlice:
    """``limit`` evenly spaced samples (by default `DEFAULT_PICTURES`) as files.

    Pictures in files are copied byte for byte, the others as PNG, so that the device sees the very pixels that this
    machine would.

    Raises:
        DataError: the data set is empty, or a picture cannot be read.
    """
    if not len(dataset):
        raise DataError(f"{dataset.name}: the data set has no pictures to measure on")
    chosen = evenly_spaced(dataset, limit or DEFAULT_PICTURES)
    samples = [chosen[index] for index in range(len(chosen))]
    pictures = [_picture(index, sample) for index, sample in enumerate(samples)]
    if all(sample.boxes is not None for sample in samples):
        files, spec = [_instances(pictures, samples, chosen)], f"coco:{FOLDER}/instances.json"
    elif all(sample.label is not None for sample in samples):
        files, spec = _labels(pictures, samples, dataset.classes), f"csv:{FOLDER}/labels.csv"
    else:
        files, spec = [], f"images:{FOLDER}/images"
    return DataSlice((*pictures, *files), spec, dataset.name, len(chosen), len(dataset))


def _picture(index: int, sample: Sample) -> JobFile:
    image: ImageLike = sample.image
    if isinstance(image, (str, Path)):
        return JobFile.of(f"{FOLDER}/images/{index:05}{Path(image).suffix.lower()}", Path(image))
    if not isinstance(image, Image.Image):
        image = Image.fromarray(np.asarray(image))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return JobFile.of(f"{FOLDER}/images/{index:05}.png", stream.getvalue())


def _file_name(picture: JobFile) -> str:
    return picture.path.rpartition("/")[2]


def _labels(pictures: list[JobFile], samples: list[Sample], classes: tuple[str, ...]) -> list[JobFile]:
    rows = [("file", "label")]
    rows += [(_file_name(picture), str(sample.label)) for picture, sample in zip(pictures, samples, strict=True)]
    files = [_table("labels.csv", rows)]
    if classes:
        # all of them: a slice need not show every class
        files.append(_table("classes.csv", [("name",), *((name,) for name in classes)]))
    return files


def _table(name: str, rows: Sequence[tuple[str, ...]]) -> JobFile:
    stream = io.StringIO(newline="")
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return JobFile.of(f"{FOLDER}/{name}", stream.getvalue().encode())


def _instances(pictures: list[JobFile], samples: list[Sample], dataset: Dataset) -> JobFile:
    annotations: list[dict[str, Any]] = []
    for index, (sample, region) in enumerate(zip(samples, crowd_regions(dataset), strict=True)):
        assert sample.boxes is not None
        annotations += _annotations(index, sample.boxes, crowd=0)
        if region is not None:
            annotations += _annotations(index, region, crowd=1)
    document = {
        "images": [{"id": index, "file_name": _file_name(picture)} for index, picture in enumerate(pictures)],
        "categories": [{"id": index + 1, "name": name} for index, name in enumerate(dataset.classes)],
        "annotations": [{"id": number + 1, **record} for number, record in enumerate(annotations)],
    }
    return JobFile.of(f"{FOLDER}/instances.json", json.dumps(document).encode())


def _annotations(index: int, boxes: Boxes, *, crowd: int) -> list[dict[str, Any]]:
    found = []
    for (left, top, right, bottom), label in zip(boxes.xyxy.tolist(), boxes.labels.tolist(), strict=True):
        width, height = right - left, bottom - top
        found.append(
            {"image_id": index, "category_id": label + 1, "bbox": [left, top, width, height],
             "area": width * height, "iscrowd": crowd}
        )  # fmt: skip
    return found
