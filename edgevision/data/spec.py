"""What a data set is called on the command line: ``kind:path[start:stop:step]``, or a path that is recognized."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from edgevision.data.arrays import npz_parts
from edgevision.data.cifar10 import is_cifar10
from edgevision.data.coco import coco_parts
from edgevision.data.csv_list import LABELS_FILE
from edgevision.data.image_folder import tree_parts
from edgevision.data.layout import holds_images, holds_images_below, is_image, subfolders
from edgevision.data.voc import is_voc
from edgevision.errors import DataError, UsageError
from edgevision.registry import Registry, unknown_name

_KIND = re.compile(r"([A-Za-z][A-Za-z0-9_-]+):(.*)", re.DOTALL)  # one letter alone is a Windows drive
_SUFFIX = re.compile(r"(.*)\[([^\[\]]*)\]", re.DOTALL)
_BOUND = re.compile(r"\s*([+-]?\d+)?\s*", re.ASCII)


@dataclass(frozen=True)
class Spec:
    """A data set's name, taken apart.

    Attributes:
        kind: name in the registry; None where it is to be recognized from the path.
        argument: what stands behind the colon, usually a path; empty for ``digits``.
        taken: which samples; None for all of them.
        suffix: the slice as it was written, with its brackets; empty for none.
    """

    kind: str | None
    argument: str
    taken: slice | None = None
    suffix: str = ""


def parse_spec(text: str, kinds: Registry) -> Spec:
    """Take ``kind:path[start:stop:step]`` apart; kind and slice may be absent.

    A path that exists exactly as written is taken as written, brackets and colon included. ``digits`` alone is the
    embedded set; a folder of that name is ``./digits``.

    Raises:
        UsageError: an unknown kind, or brackets that hold no slice.
    """
    if not text:
        raise UsageError("a data set needs a name: KIND:PATH, a path, or digits")
    rest, taken, suffix = text, None, ""
    if text != "digits" and not _exists(text) and (match := _SUFFIX.fullmatch(text)) and not _exists_behind(text):
        rest, taken, suffix = match[1], parse_slice(match[2]), f"[{match[2]}]"
    if rest == "digits":
        return Spec("digits", "", taken, suffix)
    match = _KIND.fullmatch(rest)
    if match is None or _exists(rest):
        return Spec(None, rest, taken, suffix)
    if match[1] not in kinds:
        raise UsageError(unknown_name("data set kind", match[1], kinds.names()))
    return Spec(match[1], match[2], taken, suffix)


def parse_slice(text: str) -> slice:
    """A Python slice from its text without brackets: ``"200:"``, ``":300"``, ``"::2"``.

    Raises:
        UsageError: not ``start:stop`` or ``start:stop:step``, each an integer or nothing, or a step of 0.
    """
    matches = [_BOUND.fullmatch(part) for part in text.split(":")]
    bounds = [int(match[1]) if match[1] else None for match in matches if match is not None]
    if len(bounds) != len(matches) or len(bounds) not in {2, 3}:
        raise UsageError(f"bad slice [{text}]: expected [start:stop] or [start:stop:step], as [200:], [:300] or [::2]")
    if bounds[2:] == [0]:
        raise UsageError(f"bad slice [{text}]: the step must not be 0")
    return slice(*bounds)


def _exists(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # too long, no home folder, a zero byte: no such path
        return False


def _exists_behind(text: str) -> bool:
    match = _KIND.fullmatch(text)
    return match is not None and bool(match[2]) and _exists(match[2])


def _ends_in(suffix: str) -> Callable[[Path], bool]:
    return lambda path: path.suffix.lower() == suffix


def _has_class_folders(path: Path) -> bool:
    # pictures beside the folders make it a folder of pictures: as classes, they would be left out silently
    return not holds_images(path) and any(holds_images_below(folder) for folder in subfolders(path))


Rule: TypeAlias = "tuple[str, str, Callable[[Path], bool]]"

# kind, what it is recognized by, the test; the first that holds decides
FILE_RULES: tuple[Rule, ...] = (
    ("npz", "a .npz file", _ends_in(".npz")),
    ("csv", "a .csv file", _ends_in(".csv")),
    ("coco", "a .json file", _ends_in(".json")),
    ("folder", "a .zip file", _ends_in(".zip")),
    ("cifar10", "a .bin file", _ends_in(".bin")),
    ("images", "an image", lambda path: is_image(path.name)),
)
FOLDER_RULES: tuple[Rule, ...] = (
    ("cifar10", "data_batch_1.bin", is_cifar10),
    ("npz", "train.npz or test.npz", lambda path: bool(npz_parts(path))),
    ("csv", "labels.csv", lambda path: (path / LABELS_FILE).is_file()),
    ("voc", "JPEGImages and Annotations", is_voc),
    ("coco", "instances*.json, in annotations or not", lambda path: bool(coco_parts(path))),
    ("folder", "train.zip or test.zip", lambda path: any(part.is_file() for part in tree_parts(path).values())),
    ("folder", "class folders of images, in train and val or test or not", _has_class_folders),
    ("images", "images", holds_images),
)


def recognize(path: Path) -> str:
    """Kind of the data set at ``path``, by the first of ``FILE_RULES`` or ``FOLDER_RULES`` that holds.

    Raises:
        DataError: there is no such path, or no rule holds; the message lists them.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; the only data set that needs none is 'digits'")
    is_folder = path.is_dir()
    rules = FOLDER_RULES if is_folder else FILE_RULES
    for kind, _, test in rules:
        if test(path):
            return kind
    looked_for = "; ".join(f"{what} ({kind})" for kind, what, _ in rules)
    state = "the folder is empty" if is_folder and not any(path.iterdir()) else "not recognized as a data set"
    raise DataError(f"{path}: {state}; looked for: {looked_for}; or say which kind it is: KIND:{path}")
