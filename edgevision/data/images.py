"""Pictures without labels: enough to calibrate with and to predict on."""

from __future__ import annotations

from edgevision.data.base import Dataset
from edgevision.data.datasets import FileDataset
from edgevision.data.layout import check_split, existing, is_image, walk_images
from edgevision.errors import DataError
from edgevision.images import IMAGE_SUFFIXES


def open_images(argument: str, split: str | None = None) -> Dataset:
    """Take every picture of a folder and of the folders in it, sorted by path, or one picture.

    Raises:
        DataError: no picture there.
    """
    check_split(split)
    path = existing(argument, "images")
    suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
    if path.is_file():
        if not is_image(path.name):
            raise DataError(f"{path}: is not called like an image; looked for {suffixes}")
        return FileDataset(f"images:{path}", [str(path)])
    files = [str(path / member) for member in walk_images(path)]
    if not files:
        raise DataError(f"{path}: no images in this folder; looked for {suffixes}")
    return FileDataset(f"images:{path}", files)
