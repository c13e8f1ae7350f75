"""Motion JPEG in AVI files and as a bare stream of pictures: the kind of video that Pillow alone can read and write.

AVI as in Microsoft's *AVI RIFF File Reference*: ``RIFF('AVI ' LIST('hdrl' avih LIST('strl' strh strf))
LIST('movi' 00dc …) idx1)``, every chunk a four-letter name, its length and its bytes, padded to an even length.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from edgevision.errors import DataError, OutputError

# RIFF lengths have 32 bits, and many players stop reading at half of that
MAX_AVI_BYTES = (2 << 30) - (64 << 20)
_QUALITY = 90
_LARGEST_FRAME = 256 << 20
_AVIH = "<14I"
_STRH = "<4s4sIHHIIIIIIIIHHHH"
_STRF = "<IiiHH4sIiiII"


class MotionJpegWriter:
    """Writes pictures of one size into an ``.avi`` file; close it, or what was written cannot be played.

    Args:
        stream: where to, open for writing and able to seek.
        fps: pictures per second.
        quality: of the JPEG coder, 1..95.
    """

    def __init__(self, stream: BinaryIO, fps: float, *, quality: int = _QUALITY) -> None:
        self._stream = stream
        self._rate = max(1, round(fps * 1000))
        self._quality = quality
        self._size: tuple[int, int] | None = None
        self._index: list[tuple[int, int]] = []
        self._movi = 0

    def write(self, image: Image.Image) -> None:
        """Append a picture.

        Raises:
            OutputError: another size than the first, or the file is full (2 GB).
        """
        if self._size is None:
            self._size = image.size
            self._stream.write(self._header(0))
            self._movi = self._stream.tell() - 4
        if image.size != self._size:
            raise OutputError(f"a video has frames of one size: {self._size}; got {image.size}")
        encoded = io.BytesIO()
        image.convert("RGB").save(encoded, "JPEG", quality=self._quality)
        data = encoded.getvalue()
        offset = self._stream.tell() - self._movi
        if self._movi + offset + len(data) + 16 * len(self._index) > MAX_AVI_BYTES:
            raise OutputError(f"the video has {offset >> 20} MB, as much as an AVI file holds; record shorter pieces")
        self._index.append((offset, len(data)))
        self._stream.write(b"00dc" + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2))

    def close(self) -> None:
        """Write the index and the lengths; the stream itself stays open."""
        if self._size is None:
            return
        end = self._stream.tell()
        entries = b"".join(struct.pack("<4sIII", b"00dc", 0x10, offset, size) for offset, size in self._index)
        self._stream.write(b"idx1" + struct.pack("<I", len(entries)) + entries)
        total = self._stream.tell()
        self._stream.seek(0)
        self._stream.write(self._header(total - 8, end - self._movi))
        self._stream.seek(total)

    def _header(self, riff: int, movi: int = 4) -> bytes:
        assert self._size is not None
        width, height = self._size
        largest = max((size for _, size in self._index), default=0)
        count = len(self._index)
        microseconds = round(1e9 / self._rate)
        avih = struct.pack(_AVIH, microseconds, 0, 0, 0x10, count, 0, 1, largest, width, height, 0, 0, 0, 0)
        strh = struct.pack(
            _STRH, b"vids", b"MJPG", 0, 0, 0, 0, 1000, self._rate, 0, count, largest, 0xFFFFFFFF, 0, 0, 0, width, height
        )
        strf = struct.pack(_STRF, 40, width, height, 1, 24, b"MJPG", 3 * width * height, 0, 0, 0, 0)
        strl = _list(b"strl", _chunk(b"strh", strh) + _chunk(b"strf", strf))
        hdrl = _list(b"hdrl", _chunk(b"avih", avih) + strl)
        return b"RIFF" + struct.pack("<I", riff) + b"AVI " + hdrl + b"LIST" + struct.pack("<I", movi) + b"movi"


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data


def _list(name: bytes, data: bytes) -> bytes:
    return b"LIST" + struct.pack("<I", len(data) + 4) + name + data


def avi_frame_rate(path: Path) -> float | None:
    """Pictures per second of an AVI file whose pictures are JPEG; None for any other file."""
    try:
        with path.open("rb") as stream:
            start = stream.read(1 << 16)
    except OSError:
        return None
    if start[:4] != b"RIFF" or start[8:12] != b"AVI ":
        return None
    at = start.find(b"strh")
    while at >= 0 and start[at + 8 : at + 12] != b"vids":
        at = start.find(b"strh", at + 4)
    form = start.find(b"strf", at)
    if at < 0 or form < 0 or len(start) < form + 28:
        return None
    if start[form + 24 : form + 28].upper() not in {b"MJPG", b"JPEG", b"AVRN"}:
        return None
    scale, rate = struct.unpack_from("<II", start, at + 28)
    return float(rate / scale) if rate and scale else 25.0


def read_avi(path: Path) -> Iterator[Image.Image]:
    """Pictures of an AVI file of Motion JPEG, one after the other; what is cut off at the end is left out.

    Raises:
        DataError: damaged chunks or pictures.
    """
    with path.open("rb") as stream:
        stream.seek(12)
        number = 0
        for name, data in _pictures(path, stream):
            if name[2:] in (b"dc", b"db") and data:
                yield decoded(path, number, data)
                number += 1


def _pictures(path: Path, stream: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Chunks of the stream data, lists entered, all else stepped over."""
    while len(head := stream.read(8)) == 8:
        name, length = head[:4], struct.unpack("<I", head[4:])[0]
        if name in (b"LIST", b"RIFF"):
            if stream.read(4) not in (b"movi", b"rec ", b"AVIX"):
                stream.seek(max(0, length - 4) + length % 2, io.SEEK_CUR)
            continue
        if not name[:2].isdigit():
            stream.seek(length + length % 2, io.SEEK_CUR)
            continue
        if length > _LARGEST_FRAME:
            raise DataError(f"{path}: a frame claims {length} bytes; the video is damaged")
        data = stream.read(length)
        if len(data) < length:
            return  # the recording was cut off
        stream.seek(length % 2, io.SEEK_CUR)
        yield name, data


def read_jpeg_stream(path: Path) -> Iterator[Image.Image]:
    """Pictures of a file of JPEG pictures behind each other (``.mjpeg``, as cameras send them).

    Raises:
        DataError: no JPEG at all, or a damaged one.
    """
    rest, number = b"", 0
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            # within a picture an end is not followed by a beginning: thumbnails lie inside segments
            *whole, rest = (rest + piece).split(b"\xff\xd9\xff\xd8")
            for part in whole:
                yield decoded(path, number, (b"" if number == 0 else b"\xff\xd8") + part + b"\xff\xd9")
                number += 1
            if len(rest) > _LARGEST_FRAME:
                raise DataError(f"{path}: {len(rest)} bytes without the end of a picture; not a stream of JPEG")
    if rest:
        yield decoded(path, number, (b"" if number == 0 else b"\xff\xd8") + rest)


def decoded(path: Path, number: int, data: bytes) -> Image.Image:
    """One JPEG picture as RGB.

    Raises:
        DataError: it cannot be decoded; names the file and the frame.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            return image.convert("RGB")
    except Exception as error:  # decoders raise whatever they stumble over
        raise DataError(f"{path}: frame {number} cannot be read as a JPEG picture: {error}") from error
