"""The packed form of a file: tensors as codebook and indices, everything entropy-coded; what a device decodes.

A packed file is a cover, a table of segments, and four streams::

    cover      magic "EVC1", number of segments, coding and stored length of each stream
    segments   gap (bytes of the file before the tensor), kind, dtype, rows, columns, size of the codebook
    streams    rest: the bytes between tensors
               planes: tensors kept as they are, by dtype: first byte of every element, then second byte of every…
               tables: codebooks and row scales, float32, as planes too
               indices: one byte per shared weight

A shared tensor is ``(codebook[index] · scale[row])`` in float32, cast to its dtype: exact on every machine, since a
product of two float32 numbers has one right rounding. The lengths of the streams follow from the segments, and these
may not add up to more than the size the reader was told, so a hostile file cannot ask for more memory than that.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevision.errors import BundleError

NAME = "evc1"
MAGIC = b"EVC1"
STREAMS = ("rest", "planes", "tables", "indices")
STORED, DEFLATE, LZMA = range(3)
# LZMA's literal context, literal position and position bits, and the distance of the difference filter (0: none)
LZMA_OPTIONS = ((3, 0, 2, 0), (0, 0, 0, 0), (0, 2, 2, 0), (3, 0, 0, 3), (3, 0, 0, 1))
KEPT, SHARED, SCALED = range(3)
DTYPES = ("<f4", "<f2", "<i1")
WIDTHS = (4, 2, 1)
MOST_SHARED = 256

_COVER = struct.Struct("<4sI" + "BBQ" * len(STREAMS))
_SEGMENT = struct.Struct("<QBBIIH")
_LARGEST_DICTIONARY = 64 << 20


@dataclass(frozen=True)
class Segment:
    """Where a tensor stands in a file and how it is coded.

    Attributes:
        gap: bytes between the tensor before it, or the beginning of the file, and this one.
        kind: ``KEPT`` as it is, ``SHARED`` by a codebook, ``SCALED`` by a codebook times a factor for each row.
        dtype: index into `DTYPES`.
        rows: rows of the tensor as a matrix.
        columns: its columns.
        shared: length of the codebook; 0 for ``KEPT``.
    """

    gap: int
    kind: int
    dtype: int
    rows: int
    columns: int
    shared: int

    @property
    def elements(self) -> int:
        """Number of weights."""
        return self.rows * self.columns

    @property
    def size(self) -> int:
        """Bytes it takes in the file."""
        return self.elements * WIDTHS[self.dtype]

    @property
    def table(self) -> int:
        """Numbers it takes in the stream of tables."""
        return 0 if self.kind == KEPT else self.shared + (self.rows if self.kind == SCALED else 0)


def encode(segments: Sequence[Segment], streams: dict[str, tuple[int, int, bytes]]) -> bytes:
    """Cover, segments and coded streams as one file; ``streams``: name → coding, option, coded bytes."""
    cover = _COVER.pack(
        MAGIC,
        len(segments),
        *(value for name in STREAMS for value in (*streams[name][:2], len(streams[name][2]))),
    )
    rows = [_SEGMENT.pack(s.gap, s.kind, s.dtype, s.rows, s.columns, s.shared) for s in segments]
    return b"".join([cover, *rows, *(streams[name][2] for name in STREAMS)])


def unpack(data: bytes, size: int) -> bytes:
    """The file that was packed.

    Args:
        data: the packed file.
        size: bytes it must have unpacked; no more than a small multiple of this is ever held.

    Raises:
        BundleError: damaged, or of another size.
    """
    try:
        return _unpack(data, size)
    except (struct.error, zlib.error, ValueError, IndexError, OverflowError, EOFError) as error:
        raise BundleError(f"a packed file is damaged: {error}") from error


def _unpack(data: bytes, size: int) -> bytes:
    magic, count, *told = _COVER.unpack_from(data)
    if magic != MAGIC:
        raise ValueError(f"it begins with {magic!r}, not {MAGIC!r}")
    at = _COVER.size
    if count > (len(data) - at) // _SEGMENT.size:
        raise ValueError(f"it names {count} tensors and ends before")
    segments = [Segment(*_SEGMENT.unpack_from(data, at + index * _SEGMENT.size)) for index in range(count)]
    at += count * _SEGMENT.size
    lengths = _lengths(segments, size)
    streams = {}
    for name, coding, option, stored in zip(STREAMS, told[0::3], told[1::3], told[2::3], strict=True):
        if stored > len(data) - at:
            raise ValueError("it ends too early")
        streams[name] = _expand(data[at : at + stored], coding, option, lengths[name])
        at += stored
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes follow its end")
    return _assemble(segments, streams, size)


def _lengths(segments: Sequence[Segment], size: int) -> dict[str, int]:
    """Bytes of each stream, from the segments; refuses what does not fit into ``size``."""
    for segment in segments:
        if segment.kind > SCALED or segment.dtype >= len(DTYPES) or segment.shared > MOST_SHARED:
            raise ValueError("it holds a tensor of an unknown kind")
        if not segment.elements or (segment.kind == KEPT) != (segment.shared == 0):
            raise ValueError("it holds a tensor without weights or without a codebook")
    rest = size - sum(segment.size for segment in segments)
    if rest < sum(segment.gap for segment in segments):
        raise ValueError(f"its parts are more than the {size} bytes it must have")
    return {
        "rest": rest,
        "planes": sum(segment.size for segment in segments if segment.kind == KEPT),
        "tables": 4 * sum(segment.table for segment in segments),
        "indices": sum(segment.elements for segment in segments if segment.kind != KEPT),
    }


def _expand(stored: bytes, coding: int, option: int, length: int) -> bytes:
    """A stream decoded; never more than ``length`` bytes, and refused where it is not just as many."""
    if coding == STORED or not length:
        found, whole = stored, True
    elif coding == DEFLATE:
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        found = inflate.decompress(stored, length)
        # the mark of the end may still be ahead
        found += inflate.decompress(inflate.unconsumed_tail, 1)
        whole = inflate.eof and not inflate.unused_data
    elif coding == LZMA and option < len(LZMA_OPTIONS):
        lzma = lzma_module()
        expand = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=lzma_filters(option, length))
        try:
            found = expand.decompress(stored, length)
            if not expand.eof:
                found += expand.decompress(b"", 1)
        except lzma.LZMAError as error:
            raise ValueError(str(error)) from error
        whole = expand.eof and not expand.unused_data
    else:
        raise ValueError(f"it uses coding {coding}.{option}, which this edgevision does not know")
    if len(found) != length or not whole:
        raise ValueError("a stream has another length than its tensors need")
    return found


def lzma_module() -> ModuleType:
    """`lzma`, which some builds of Python lack.

    Raises:
        BundleError: it is not there.
    """
    try:
        import lzma
    except ImportError as error:
        raise BundleError("this Python was built without lzma, which compressed bundles need") from error
    return lzma


def lzma_filters(option: int, length: int) -> list[dict[str, Any]]:
    """The filter chain for a stream of ``length`` bytes; its memory follows from the length alone."""
    lzma = lzma_module()
    context, literal, position, distance = LZMA_OPTIONS[option]
    dictionary = min(max(length, 4096), _LARGEST_DICTIONARY)
    chain: list[dict[str, Any]] = [
        {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": dictionary, "lc": context, "lp": literal, "pb": position}
    ]
    return [{"id": lzma.FILTER_DELTA, "dist": distance}, *chain] if distance else chain


def _assemble(segments: Sequence[Segment], streams: dict[str, bytes], size: int) -> bytes:
    """The file, its tensors in their places."""
    rest = memoryview(streams["rest"])
    kept = _kept(segments, streams["planes"])
    tables = np.frombuffer(from_planes(streams["tables"], 4), "<f4")
    indices = np.frombuffer(streams["indices"], np.uint8)
    whole = bytearray()
    used = {"rest": 0, "tables": 0, "indices": 0}
    for segment in segments:
        whole += rest[used["rest"] : used["rest"] + segment.gap]
        used["rest"] += segment.gap
        if segment.kind == KEPT:
            whole += kept[segment.dtype].read(segment.size)
            continue
        table = tables[used["tables"] : used["tables"] + segment.table]
        used["tables"] += segment.table
        chosen = indices[used["indices"] : used["indices"] + segment.elements].reshape(segment.rows, segment.columns)
        used["indices"] += segment.elements
        scales = table[segment.shared :] if segment.kind == SCALED else None
        whole += shared_values(table[: segment.shared], chosen, scales, DTYPES[segment.dtype]).tobytes()
    whole += rest[used["rest"] :]
    if len(whole) != size:
        raise ValueError(f"it has {len(whole)} bytes unpacked instead of {size}")
    return bytes(whole)


def _kept(segments: Sequence[Segment], planes: bytes) -> list[io.BytesIO]:
    """The tensors kept as they are, one behind another, for each dtype."""
    found, at = [], 0
    for dtype, width in enumerate(WIDTHS):
        size = sum(segment.size for segment in segments if segment.kind == KEPT and segment.dtype == dtype)
        found.append(io.BytesIO(from_planes(planes[at : at + size], width)))
        at += size
    return found


def shared_values(
    codebook: npt.NDArray[np.float32],
    indices: npt.NDArray[np.uint8],
    scales: npt.NDArray[np.float32] | None,
    dtype: str = "<f4",
) -> npt.NDArray[Any]:
    """``codebook[indices] · scales`` in float32, cast to ``dtype``.

    Args:
        codebook: ``[k]``.
        indices: ``[rows, columns]``, each below k.
        scales: ``[rows]`` or None.
        dtype: one of `DTYPES`.

    Returns:
        ``[rows, columns]``.
    """
    with np.errstate(all="ignore"):  # a hostile codebook may overflow a cast; the hash of the file will tell
        if scales is None:
            # a gather of the few values in their last type is quicker than a cast of all of them
            return np.asarray(codebook.astype(dtype)[indices])
        values = codebook[indices]
        values *= scales[:, None]
        return values.astype(dtype, copy=False)


def to_planes(data: bytes, width: int) -> bytes:
    """Bytes of elements of ``width`` bytes reordered: all first bytes, then all second bytes, …"""
    return np.frombuffer(data, np.uint8).reshape(-1, width).T.tobytes()


def from_planes(data: bytes, width: int) -> bytes:
    """`to_planes` undone."""
    return np.frombuffer(data, np.uint8).reshape(width, -1).T.tobytes()
