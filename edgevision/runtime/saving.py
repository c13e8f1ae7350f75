"""Saving what was drawn: a picture for a picture, a video for a video."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgevision.dependencies import installed
from edgevision.detection.detections import Detections
from edgevision.files import atomic_path, ensure_writable
from edgevision.runtime.video import VideoWriter

if TYPE_CHECKING:
    from edgevision.runtime.frames import Frame, Source
    from edgevision.tasks import TaskResult

# formats that Pillow writes as well as it reads; others become JPEG
_KEPT = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".webp": "WEBP"}
_QUALITY = 92


class Saver:
    """Draws detections into pictures and saves them in a folder, under the names of their sources.

    A second source of the same name gets a number behind it, and so does one that lies in the folder itself: no source
    is written over. Videos become ``.mp4`` where PyAV is installed, else ``.avi`` (Motion JPEG).

    Args:
        folder: where to; None saves nothing.

    Raises:
        OutputError: the folder cannot be made or written.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self._folder = None if folder is None else ensure_writable(folder)
        self._taken: set[str] = set()
        self._video: tuple[Source, VideoWriter] | None = None

    def save(self, frame: Frame, result: TaskResult) -> str | None:
        """Draw a result and save it; returns the file's path, or None where nothing is saved."""
        if self._folder is None or not isinstance(result, Detections):
            return None
        drawn = result.plot(frame.image)
        if frame.source is not None and frame.source.video is not None:
            writer = self._writer(frame.source, frame.source.video.fps)
            writer.write(drawn)
            return str(writer.path)
        suffix = Path(frame.name).suffix.lower()
        path = self._path(frame.name, suffix if suffix in _KEPT else ".jpg")
        with atomic_path(path) as temporary:
            drawn.save(temporary, format=_KEPT[path.suffix], quality=_QUALITY)
        return str(path)

    def close(self) -> None:
        """Finish the video under way."""
        if self._video is not None:
            self._video[1].close()
            self._video = None

    def abort(self) -> None:
        """Drop the video under way."""
        if self._video is not None:
            self._video[1].abort()
            self._video = None

    def _writer(self, source: Source, fps: float) -> VideoWriter:
        if self._video is None or self._video[0] is not source:
            self.close()
            path = self._path(source.name, ".mp4" if installed("av") else ".avi")
            self._video = source, VideoWriter(path, fps)
        return self._video[1]

    def _path(self, name: str, suffix: str) -> Path:
        assert self._folder is not None
        stem = Path(name).stem or "picture"
        number, chosen = 1, stem
        # file systems of boards may not tell letters' cases apart
        while f"{chosen}{suffix}".lower() in self._taken or _is_same(self._folder / f"{chosen}{suffix}", Path(name)):
            number += 1
            chosen = f"{stem}-{number}"
        self._taken.add(f"{chosen}{suffix}".lower())
        return self._folder / f"{chosen}{suffix}"


def _is_same(path: Path, other: Path) -> bool:
    return path.exists() and other.exists() and path.samefile(other)
