"""Where pictures come from: files, folders, patterns, videos and cameras as one sequence of `Frame`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path

from edgevision.errors import DataError
from edgevision.images import IMAGE_SUFFIXES, ImageLike
from edgevision.runtime.video import ANIMATION_SUFFIXES, VIDEO_SUFFIXES, Video, is_video, open_camera, open_video

_SUFFIXES = IMAGE_SUFFIXES | ANIMATION_SUFFIXES | VIDEO_SUFFIXES


@dataclass(frozen=True)
class Source:
    """A picture file, a video or a camera.

    Attributes:
        name: the path as it was given; ``camera 0``.
        kind: ``image``, ``video`` or ``camera``.
        video: the open video; None for a picture.
    """

    name: str
    kind: str
    video: Video | None = None

    def frames(self) -> Iterator[Frame]:
        """Its picture, or its pictures one after the other.

        Raises:
            DataError: a video is damaged.
        """
        if self.video is None:
            yield Frame(self.name, self.name, None, self)
            return
        number = -1
        for number, image in enumerate(self.video):
            yield Frame(image, self.name, number, self)
        if number < 0:
            raise DataError(f"{self.name}: holds not one whole picture; the recording was cut off, or it is no video")


@dataclass(frozen=True)
class Frame:
    """One picture.

    Attributes:
        image: a path, decoded where it is used, or a PIL image (of a video).
        name: what it is called in messages: the path as it was given; ``camera 0``.
        number: which frame of its video, from 0; None for a picture.
        source: where it came from; None for a picture of somebody's own.
    """

    image: ImageLike
    name: str
    number: int | None = None
    source: Source | None = None


def source_names(argument: str) -> list[str]:
    """What one argument of a command names.

    A file or a camera's number is itself; a folder, its pictures and videos, sorted, those of folders in it not; a
    pattern with ``*``, ``?`` or ``[…]`` (``**`` for any folders between), the pictures and videos it matches, where no
    file is called so. A path that does not exist is given back: whoever reads it says so.

    Raises:
        DataError: a folder or pattern without pictures or videos.
    """
    path = Path(argument)
    if path.is_dir():
        names = sorted(str(file) for file in path.iterdir() if _is_source(file))
    elif not path.exists() and has_magic(argument):
        found = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
        names = sorted(str(file) for file in found if _is_source(file))
    else:
        return [argument]
    if not names:
        raise DataError(f"{argument}: holds no pictures or videos ({', '.join(sorted(_SUFFIXES))})")
    return names


def open_source(name: str) -> Source:
    """Open a picture (which is read only where it is used), a video, or a camera by its number.

    Raises:
        DataError: a video or camera cannot be opened.
        MissingDependencyError: it needs a package that is not installed.
    """
    path = Path(name)
    if name.isdecimal() and not path.exists():
        return Source(f"camera {int(name)}", "camera", open_camera(int(name)))
    if path.is_file() and is_video(path):
        return Source(name, "video", open_video(path))
    if path.suffix.lower() in VIDEO_SUFFIXES:
        raise DataError(f"{name}: no such video file")
    return Source(name, "image")


def _is_source(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file()
