"""What the kinds share: names of splits, walking folders, and keeping paths inside them."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path, PurePath

from edgevision.errors import DataError, UsageError
from edgevision.images import IMAGE_SUFFIXES
from edgevision.registry import unknown_name

# what a layout may call a split, in the order in which splits are joined into the whole set
SPLIT_NAMES = ("train", "val", "validation", "valid", "test")

# no picture is this wide; what is further out is damage, and would overflow float32 before long
MAX_COORDINATE = 1e9

# the split asked for → the layout's names for it, best first: few layouts have both a val and a test part
_ALIASES: dict[str, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "validation", "valid", "test"),
    "validation": ("validation", "val", "valid", "test"),
    "valid": ("valid", "val", "validation", "test"),
    "test": ("test", "val", "validation", "valid"),
}


def check_split(split: str | None) -> None:
    """Refuse a split that no layout has.

    Raises:
        UsageError: not None and none of ``SPLIT_NAMES``.
    """
    if split is not None and split not in _ALIASES:
        raise UsageError(unknown_name("split", split, list(_ALIASES)))


def choose_splits(where: Path, split: str | None, available: Collection[str]) -> list[str]:
    """Names of the parts of a divided data set that make up ``split``; all of them for None.

    Raises:
        DataError: the data set has no such part. Evaluating on another part silently would give a wrong figure.
    """
    if split is None:
        return [name for name in SPLIT_NAMES if name in available]
    for alias in _ALIASES[split]:
        if alias in available:
            return [alias]
    have = ", ".join(name for name in SPLIT_NAMES if name in available)
    raise DataError(f"{where}: has no {split!r} split, only {have}; name the part's own file or folder to use that")


def split_name(source: str, split: str | None) -> str:
    """Name of a data set with the split that was taken, as reports show it."""
    return source if split is None else f"{source} ({split})"


def existing(argument: str, kind: str) -> Path:
    """The path behind ``kind:``, with ``~`` expanded.

    Raises:
        UsageError: nothing stands behind the colon.
        DataError: there is no such file or folder.
    """
    if not argument:
        raise UsageError(f"{kind}: names no path; write {kind}:PATH")
    path = Path(argument).expanduser()
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    return path


def is_image(name: str) -> bool:
    """Whether a file of this name is taken for a picture; hidden files are not."""
    return PurePath(name).suffix.lower() in IMAGE_SUFFIXES and not is_hidden(PurePath(name).name)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's making: dot files and what macOS adds to archives."""
    return name.startswith(".") or name == "__MACOSX"


def holds_images(folder: Path) -> bool:
    """Whether at least one picture lies directly in ``folder``."""
    return folder.is_dir() and any(is_image(entry.name) for entry in folder.iterdir())


def holds_images_below(folder: Path) -> bool:
    """Whether at least one picture lies in ``folder`` or in a folder in it."""
    walk = os.walk(folder, followlinks=True)
    return any(is_image(name) for here, _, files in walk if not is_hidden(Path(here).name) for name in files)


def subfolders(folder: Path) -> list[Path]:
    """Folders directly in ``folder`` that are not hidden, sorted."""
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name))


def walk_images(root: Path) -> list[str]:
    """Pictures anywhere below ``root``: sorted paths relative to it, with forward slashes. Links are followed.

    Raises:
        DataError: a folder that may not be read.
    """
    found: list[str] = []
    for folder, children, files in os.walk(root, followlinks=True, onerror=_unreadable):
        children[:] = [child for child in children if not is_hidden(child) and not _is_loop(Path(folder), child)]
        here = Path(folder).relative_to(root)
        found += [(here / name).as_posix() for name in files if is_image(name)]
    return sorted(found)


def _is_loop(folder: Path, child: str) -> bool:
    path = folder / child
    return path.is_symlink() and folder.resolve().is_relative_to(path.resolve())


def _unreadable(error: OSError) -> None:
    raise DataError(f"{error.filename}: the folder cannot be read: {error.strerror}") from error


def stays_inside(name: str) -> bool:
    """Whether a relative path of an annotation file cannot leave the folder it is relative to."""
    path = PurePath(name)
    return bool(name) and not path.is_absolute() and not path.drive and ".." not in path.parts


def read_bytes(path: Path) -> bytes:
    """Content of a file.

    Raises:
        DataError: it is missing, a folder, or may not be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def read_text(path: Path) -> str:
    """Content of a UTF-8 file, without its byte order mark.

    Raises:
        DataError: it cannot be read, or is not UTF-8; the line is named.
    """
    data = read_bytes(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: not UTF-8 text ({error.reason}); save the file as UTF-8") from error
