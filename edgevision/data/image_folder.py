"""ImageFolder: one folder of pictures per class, as a tree on disk or inside a zip."""

from __future__ import annotations

import os
import threading
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from edgevision.data.base import Dataset, Sample
from edgevision.data.datasets import FileDataset, Labels, joined
from edgevision.data.layout import (
    SPLIT_NAMES,
    check_split,
    choose_splits,
    existing,
    holds_images_below,
    is_hidden,
    is_image,
    split_name,
    stays_inside,
    subfolders,
    walk_images,
)
from edgevision.errors import DataError
from edgevision.images import to_rgb


@dataclass(frozen=True)
class Tree:
    """Pictures of one ImageFolder tree.

    Attributes:
        path: the folder or the zip.
        prefix: what stands before every member, with its slash; ``""`` or e.g. ``"train/"``.
        members: paths below the prefix, sorted: ``"cat/tabby/7.jpg"``.
    """

    path: Path
    prefix: str
    members: tuple[str, ...]

    @property
    def class_names(self) -> set[str]:
        """Names of the class folders that hold a picture."""
        return {member.split("/")[0] for member in self.members}


def tree_parts(folder: Path) -> dict[str, Path]:
    """Trees of a folder that are named after a split: ``train.zip``, or a subfolder that itself has class folders."""
    parts: dict[str, Path] = {}
    for name in SPLIT_NAMES:
        part = folder / name
        if part.is_dir() and any(holds_images_below(child) for child in subfolders(part)):
            parts[name] = part
        elif (folder / f"{name}.zip").is_file():
            parts[name] = folder / f"{name}.zip"
    return parts


def open_image_folder(argument: str, split: str | None = None) -> Dataset:
    """Read a tree ``CLASS/…/picture.jpg``: a folder, a ``.zip``, or a folder with ``train`` and ``val`` or ``test``.

    Classes are the sorted names of the folders that hold a picture, over all splits, so that every split numbers
    them alike. Folders without a picture and files outside class folders are passed over. Of a zip, folders that
    all pictures share above the class folders are passed over too; its members are read into memory one by one,
    never extracted.

    Raises:
        DataError: no class folder, a damaged zip, or no such split.
    """
    check_split(split)
    path = existing(argument, "folder")
    trees = _trees(path)
    names = sorted(set().union(*(tree.class_names for tree in trees.values())))
    if not names:
        raise DataError(
            f"{path}: no class folder with an image in it; for pictures without classes write images:{path}"
        )
    if "" in trees:
        return _dataset(f"folder:{path}", trees[""], names)
    chosen = choose_splits(path, split, trees)
    parts = [_dataset(split_name(f"folder:{path}", name), trees[name], names) for name in chosen]
    return joined(f"folder:{path}", parts)


def _trees(path: Path) -> dict[str, Tree]:
    """Trees by split; a set without splits has one, under ``""``."""
    if path.is_file():
        return _zip_trees(path)
    parts = tree_parts(path)
    if not parts:
        return {"": _folder_tree(path)}
    trees = {}
    for name, part in parts.items():
        trees[name] = _folder_tree(part) if part.is_dir() else _whole_zip(part)
    return trees


def _folder_tree(path: Path) -> Tree:
    return Tree(path, "", tuple(member for member in walk_images(path) if "/" in member))


def _whole_zip(path: Path) -> Tree:
    prefix, members = _strip_shared(_zip_images(path))
    return Tree(path, prefix, tuple(members))


def _zip_trees(path: Path) -> dict[str, Tree]:
    prefix, members = _strip_shared(_zip_images(path))
    tops = {member.split("/")[0] for member in members if member.count("/") >= 2}
    parts = [name for name in SPLIT_NAMES if name in tops]
    if not parts:
        return {"": Tree(path, prefix, tuple(members))}
    trees = {}
    for name in parts:
        start = f"{name}/"
        inside = [member[len(start) :] for member in members if member.startswith(start)]
        trees[name] = Tree(path, prefix + start, tuple(member for member in inside if "/" in member))
    return trees


def _strip_shared(members: list[str]) -> tuple[str, list[str]]:
    """Take away the folders that all members share, as long as every picture keeps a class folder."""
    prefix = ""
    while members and min(member.count("/") for member in members) >= 2:
        top = members[0].split("/")[0] + "/"
        if not all(member.startswith(top) for member in members):
            break
        prefix += top
        members = [member[len(top) :] for member in members]
    return prefix, members


def _zip_images(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"{path}: cannot be read as a zip: {error}") from error
    for name in names:
        if not stays_inside(name):
            raise DataError(f"{path}: member {name!r} names a path outside the archive")
    hidden_free = (name for name in names if not any(is_hidden(part) for part in PurePosixPath(name).parts))
    return sorted(name for name in hidden_free if "/" in name and is_image(name))


def _dataset(name: str, tree: Tree, names: Sequence[str]) -> Dataset:
    if not tree.members:
        raise DataError(f"{tree.path}: no class folder with an image in it")
    index = {class_name: number for number, class_name in enumerate(names)}
    labels = np.asarray([index[member.split("/")[0]] for member in tree.members], np.int64)
    if tree.path.is_file():
        members = [tree.prefix + member for member in tree.members]
        return ZipFolder(name, ZipReader(tree.path), members, labels, tuple(names))
    return FileDataset(name, [str(tree.path / member) for member in tree.members], labels, tuple(names))


class ZipReader:
    """Reads members of a zip into memory; safe from several threads and in forked or spawned processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._archive: zipfile.ZipFile | None = None
        self._owner = 0

    def read(self, member: str) -> bytes:
        """Content of a member.

        Raises:
            DataError: it is missing, damaged, encrypted or packed in an unknown way.
        """
        try:
            with self._lock:
                return self._open().read(member)
        except (zipfile.BadZipFile, zlib.error, KeyError, OSError, EOFError, RuntimeError, ValueError) as error:
            raise DataError(f"{self.path}:{member}: cannot be read from the zip: {error}") from error

    def _open(self) -> zipfile.ZipFile:
        # a forked process shares its parent's file position, so each process opens the file for itself
        if self._archive is None or self._owner != os.getpid():
            self._archive = zipfile.ZipFile(self.path)
            self._owner = os.getpid()
        return self._archive

    def __reduce__(self) -> tuple[type[ZipReader], tuple[Path]]:
        return ZipReader, (self.path,)


@dataclass(frozen=True, eq=False)
class ZipFolder:
    """Pictures inside a zip; ``dataset[i]`` reads and decodes picture ``i``.

    Attributes:
        name: where it came from.
        reader: reads the zip.
        members: name of every picture in the zip.
        labels: int64 ``[N]``: class index of every picture.
        classes: class names by index.
    """

    name: str
    reader: ZipReader
    members: Sequence[str]
    labels: Labels
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> Sample:
        member = self.members[index]
        name = f"{self.reader.path}:{member}"
        return Sample(decode(self.reader.read(member), name), name=name, label=int(self.labels[index]))

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


def decode(data: bytes, name: str) -> Image.Image:
    """Decode an encoded picture into an upright PIL image of mode ``RGB``, as `edgevision.images.read_image` does.

    Raises:
        DataError: the bytes are empty, truncated or no image; the message begins with ``name``.
    """
    if not data:
        raise DataError(f"{name}: the image is empty (0 bytes)")
    try:
        with Image.open(BytesIO(data)) as image:
            image.load()
            return to_rgb(ImageOps.exif_transpose(image))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{name}: cannot be read as an image: {error}") from error
