"""Videos and cameras as sequences of RGB pictures, and pictures as a video.

Animations and Motion JPEG are read by Pillow and need nothing else. Other videos are read and written by PyAV; OpenCV,
which boards often bring with them, reads videos where PyAV is missing, and cameras.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps, ImageSequence

from edgevision.dependencies import installed, require
from edgevision.errors import DataError, OutputError, UsageError
from edgevision.files import atomic_path
from edgevision.images import to_rgb
from edgevision.runtime.motion_jpeg import MotionJpegWriter, avi_frame_rate, read_avi, read_jpeg_stream

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".mjpeg", ".mjpg"}
)
# formats of pictures that may hold several of them
ANIMATION_SUFFIXES = frozenset({".gif", ".webp", ".png", ".apng", ".tif", ".tiff"})
_JPEG_STREAMS = frozenset({".mjpeg", ".mjpg"})
# system → how it names a camera, and the driver that knows it
_CAMERAS = {"linux": ("/dev/video{}", "v4l2"), "darwin": ("{}", "avfoundation")}
# where a file does not tell
DEFAULT_FPS = 25.0


class Video(Protocol):
    """Pictures one after the other. Iterating a second time starts a file over and goes on with a camera."""

    fps: float

    def __iter__(self) -> Iterator[Image.Image]: ...


def is_video(path: Path) -> bool:
    """Whether a file is a video or an animation, judged by its name, and for animations by the pictures in it."""
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return True
    if suffix not in ANIMATION_SUFFIXES:
        return False
    try:
        with Image.open(path) as image:
            return int(getattr(image, "n_frames", 1)) > 1
    except Exception:  # a damaged picture is reported where it is read as one
        return False


def open_video(path: str | Path) -> Video:
    """Open a video or an animation.

    Raises:
        DataError: missing, or not readable as a video.
        MissingDependencyError: neither PyAV nor OpenCV is installed, and the file needs one.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such video file")
    if path.suffix.lower() in ANIMATION_SUFFIXES:
        return _Animation(path)
    if path.suffix.lower() in _JPEG_STREAMS:
        return _MotionJpeg(path, DEFAULT_FPS, read_jpeg_stream)
    if (fps := avi_frame_rate(path)) is not None:
        return _MotionJpeg(path, fps, read_avi)
    if installed("cv2") and not installed("av"):
        return _OpenCvVideo(str(path), str(path))
    return _AvVideo(str(path), str(path))


def open_camera(index: int) -> Video:
    """Open a camera by its number, 0 for the first.

    Raises:
        DataError: there is no such camera, or it cannot be opened.
        MissingDependencyError: neither OpenCV nor, on Linux and macOS, PyAV is installed.
    """
    name = f"camera {index}"
    # PyAV reaches cameras where the system numbers them
    device = _CAMERAS.get(sys.platform)
    if installed("cv2") or device is None:
        return _OpenCvVideo(index, name)
    return _AvVideo(device[0].format(index), name, device[1])


class _Animation:
    """A GIF, WebP, PNG or TIFF file with several pictures."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with Image.open(path) as image:
                milliseconds = float(image.info.get("duration") or 0.0)
        except Exception as error:  # decoders raise whatever they stumble over
            raise DataError(f"{path}: cannot be read as an image: {error}") from error
        self.fps = 1000.0 / milliseconds if milliseconds > 0 else DEFAULT_FPS

    def __iter__(self) -> Iterator[Image.Image]:
        number = 0
        try:
            with Image.open(self._path) as image:
                for frame in ImageSequence.Iterator(image):
                    # a copy: the next frame is drawn over this one
                    picture = to_rgb(ImageOps.exif_transpose(frame.copy()))
                    yield picture
                    number += 1
        except Exception as error:
            raise DataError(f"{self._path}: frame {number} cannot be read: {error}") from error


class _MotionJpeg:
    def __init__(self, path: Path, fps: float, read: Any) -> None:
        self._path, self.fps, self._read = path, fps, read

    def __iter__(self) -> Iterator[Image.Image]:
        return iter(self._read(self._path))


class _OpenCvVideo:
    """A file or a camera, opened at once so that what is wrong with it is told before any work."""

    def __init__(self, source: str | int, name: str) -> None:
        self._cv2 = require("cv2", purpose="read videos and cameras", extra="video")
        self._source, self._name = source, name
        self._capture: Any = self._open()
        told = float(self._capture.get(self._cv2.CAP_PROP_FPS))
        self.fps = told if 0 < told < 1000 else DEFAULT_FPS

    def _open(self) -> Any:
        capture = self._cv2.VideoCapture(self._source)
        if not capture.isOpened():
            capture.release()
            if isinstance(self._source, int):
                raise DataError(f"{self._name} cannot be opened: is it connected, and may this user read it?")
            raise DataError(f"{self._name}: cannot be read as a video")
        return capture

    def __iter__(self) -> Iterator[Image.Image]:
        capture, self._capture = self._capture or self._open(), None
        try:
            while True:
                came, frame = capture.read()
                if not came:
                    return
                yield Image.fromarray(np.ascontiguousarray(frame[:, :, ::-1]))
        finally:
            capture.release()


class _AvVideo:
    """A file, or a camera by the system's name of it and the driver's."""

    def __init__(self, source: str, name: str, driver: str | None = None) -> None:
        self._av = require("av", purpose="read videos and cameras", extra="video")
        self._source, self._name, self._driver = source, name, driver
        try:
            with self._open() as container:
                rate = container.streams.video[0].average_rate
        except Exception as error:  # decoders raise whatever they stumble over, LookupError included
            if driver is not None:
                raise DataError(
                    f"{name} cannot be opened: is it connected, and may this user read it? ({error})"
                ) from error
            raise DataError(f"{name}: cannot be read as a video: {error}") from error
        self.fps = float(rate) if rate else DEFAULT_FPS

    def _open(self) -> Any:
        return self._av.open(self._source, format=self._driver)

    def __iter__(self) -> Iterator[Image.Image]:
        number = 0
        try:
            with self._open() as container:
                for frame in container.decode(video=0):
                    pixels = frame.to_ndarray(format="rgb24")
                    # phones store how they were held; OpenCV turns pictures upright by itself
                    turns = int(getattr(frame, "rotation", 0) or 0) // 90
                    yield Image.fromarray(np.ascontiguousarray(np.rot90(pixels, turns)))
                    number += 1
        except Exception as error:
            raise DataError(f"{self._name}: frame {number} cannot be read: {error}") from error


class VideoWriter:
    """Writes pictures as a video beside its name and renames it when it is closed without an error.

    Args:
        path: ``.avi`` (Motion JPEG, always there) or ``.mp4`` (PyAV).
        fps: pictures per second.

    Raises:
        UsageError: another kind of file.
        MissingDependencyError: ``.mp4`` without PyAV.
        OutputError: the file cannot be written.
    """

    def __init__(self, path: str | Path, fps: float) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() not in {".avi", ".mp4"}:
            raise UsageError(f"videos are written as .avi or .mp4; got {self.path.name}")
        self._fps = fps if 0 < fps < 1000 else DEFAULT_FPS
        self._stack = ExitStack()
        self._sink: Any = None
        if self.path.suffix.lower() == ".mp4":
            require("av", purpose="write .mp4 videos", extra="video")

    def write(self, image: Image.Image) -> None:
        """Append a picture; all have the size of the first."""
        if self._sink is None:
            self._sink = self._open(image.size)
        self._sink.write(image)

    def close(self) -> None:
        """Finish the file; without a picture there is none."""
        if self._sink is not None:
            self._sink.close()
        self._stack.close()

    def abort(self) -> None:
        """Drop what was written."""
        error = OutputError(f"{self.path} was not finished")
        if self._sink is not None:
            self._sink.close()
        self._stack.__exit__(type(error), error, None)

    def _open(self, size: tuple[int, int]) -> Any:
        temporary = self._stack.enter_context(atomic_path(self.path))
        if self.path.suffix.lower() == ".avi":
            return MotionJpegWriter(self._stack.enter_context(temporary.open("wb")), self._fps)
        return _AvWriter(temporary, self._fps, size)


class _AvWriter:
    """H.264 where PyAV was built with it, which browsers play, else MPEG-4."""

    def __init__(self, temporary: Path, fps: float, size: tuple[int, int]) -> None:
        self._av = require("av", purpose="write .mp4 videos", extra="video")
        self._size = size
        self._container = self._av.open(str(temporary), "w", format="mp4")
        self._stream = self._container.add_stream(self._codec(), rate=Fraction(fps).limit_denominator(1001))
        # colours are stored for two pixels at a time
        self._stream.width, self._stream.height = (side + side % 2 for side in size)
        self._stream.pix_fmt = "yuv420p"

    def _codec(self) -> str:
        for name in ("libx264", "libopenh264"):
            try:
                self._av.Codec(name, "w")
            except Exception:  # not built in: its error is of another class in every version
                continue
            return name
        return "mpeg4"

    def write(self, image: Image.Image) -> None:
        if image.size != self._size:
            raise OutputError(f"a video has frames of one size: {self._size}; got {image.size}")
        pixels = np.asarray(image.convert("RGB"))
        even = np.pad(pixels, ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)), "edge")
        self._container.mux(self._stream.encode(self._av.VideoFrame.from_ndarray(even, format="rgb24")))

    def close(self) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()
