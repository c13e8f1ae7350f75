"""Writing the packed form: the tensors are found in a file, and each stream gets the code that makes it smallest."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgevision.compression.codec import (
    DEFLATE,
    DTYPES,
    KEPT,
    LZMA,
    LZMA_OPTIONS,
    MOST_SHARED,
    SCALED,
    SHARED,
    STORED,
    WIDTHS,
    Segment,
    encode,
    lzma_filters,
    lzma_module,
    shared_values,
    to_planes,
    unpack,
)
from edgevision.errors import BundleError

# shorter ones cost more to describe than they save, and their bytes may stand anywhere by chance
_LEAST_BYTES = 128
# how much smaller than deflate LZMA must be: it takes seven times as long to decode
_WORTH = 0.99
# bytes by which a place is looked for
_PIECE = 64
# a code is chosen by what it makes of a few pieces of a long stream
_SAMPLES = 8
_SAMPLE_BYTES = 32 << 10


@dataclass(frozen=True)
class Weights:
    """A tensor that may stand in an engine's file.

    Attributes:
        values: as the graph has it, its first axis the rows: float32, or int8 for quantized weights.
        codebook: float32 ``[k]``, k at most 256, where its weights are shared.
        indices: uint8 ``[rows, columns]``, likewise.
        scales: float32 ``[rows]`` where each row has a factor of its own.
    """

    values: npt.NDArray[np.generic]
    codebook: npt.NDArray[np.float32] | None = None
    indices: npt.NDArray[np.uint8] | None = None
    scales: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.codebook is not None and not 1 <= len(self.codebook) <= MOST_SHARED:
            raise ValueError(f"a codebook has 1 to {MOST_SHARED} values; got {len(self.codebook)}")

    def written(self) -> Iterable[tuple[int, bytes]]:
        """How an engine may write it: dtype's index and bytes."""
        rows = len(self.values) if self.values.size and self.values.ndim else 1
        matrix = self.values.reshape(rows, -1)
        if self.values.dtype == np.int8:
            yield DTYPES.index("<i1"), matrix.tobytes()
            return
        yield DTYPES.index("<f4"), matrix.astype("<f4").tobytes()
        with np.errstate(over="ignore"):
            yield DTYPES.index("<f2"), matrix.astype("<f2").tobytes()


@dataclass(frozen=True)
class _Found:
    """A tensor found in a file."""

    start: int
    end: int
    dtype: int
    weights: Weights


def pack(data: bytes, tensors: Sequence[Weights] = (), *, pictures: bool = False) -> bytes:
    """The packed form of a file; `edgevision.compression.codec.unpack` gives back the same bytes.

    Args:
        data: the file.
        tensors: what may stand in it; those that do not are passed over.
        pictures: whether its bytes are pixels, whose differences are smaller than they are.
    """
    found = _find(data, tensors)
    segments: list[Segment] = []
    rest, tables, indices = bytearray(), bytearray(), bytearray()
    kept = [bytearray() for _ in DTYPES]
    at = 0
    for item in found:
        rest += data[at : item.start]
        segments.append(_segment(item, item.start - at))
        weights = item.weights
        if weights.codebook is None or weights.indices is None:
            kept[item.dtype] += data[item.start : item.end]
        else:
            tables += weights.codebook.astype("<f4").tobytes()
            tables += b"" if weights.scales is None else weights.scales.astype("<f4").tobytes()
            indices += weights.indices.tobytes()
        at = item.end
    rest += data[at:]
    planes = b"".join(to_planes(bytes(part), width) for part, width in zip(kept, WIDTHS, strict=True))
    contents = {"rest": rest, "planes": planes, "tables": to_planes(bytes(tables), 4), "indices": indices}
    streams = {
        name: _shortest(bytes(content), pictures=pictures and name == "rest") for name, content in contents.items()
    }
    packed = encode(segments, streams)
    if unpack(packed, len(data)) != data:
        raise BundleError("a file does not come back from its packed form as it was; please report this")
    return packed


def _find(data: bytes, tensors: Sequence[Weights]) -> list[_Found]:
    """Where tensors stand, in order of place; of two that overlap the larger."""
    found: list[_Found] = []
    taken: list[tuple[int, int]] = []
    for weights in sorted(tensors, key=lambda tensor: -tensor.values.size):
        for dtype, written in weights.written():
            if len(written) < _LEAST_BYTES:
                continue
            start = _free(data, written, taken)
            if start < 0:
                continue
            found.append(_Found(start, start + len(written), dtype, _checked(weights, dtype, written)))
            taken.append((start, start + len(written)))
            break
    return sorted(found, key=lambda item: item.start)


def _free(data: bytes, written: bytes, taken: Sequence[tuple[int, int]]) -> int:
    """The first place of ``written`` that no other tensor has taken; −1 where there is none."""
    # a short piece that is unlike its surroundings is found at once, where zeros would be found everywhere
    pieces = range(0, len(written) - _PIECE + 1, max(_PIECE, len(written) // 16))
    offset = max(pieces, key=lambda at: len(set(written[at : at + _PIECE])))
    piece = written[offset : offset + _PIECE]
    at = data.find(piece, offset)
    while at >= 0:
        start, end = at - offset, at - offset + len(written)
        if data[start:end] == written and not any(first < end and start < last for first, last in taken):
            return start
        at = data.find(piece, at + 1)
    return -1


def _checked(weights: Weights, dtype: int, written: bytes) -> Weights:
    """The tensor, its sharing dropped where codebook and indices do not give the very bytes."""
    if weights.codebook is None or weights.indices is None:
        return Weights(weights.values)
    made = shared_values(weights.codebook, weights.indices, weights.scales, DTYPES[dtype]).tobytes()
    return weights if made == written else Weights(weights.values)


def _segment(item: _Found, gap: int) -> Segment:
    weights = item.weights
    if weights.codebook is None or weights.indices is None:
        elements = (item.end - item.start) // WIDTHS[item.dtype]
        return Segment(gap, KEPT, item.dtype, 1, elements, 0)
    kind = SHARED if weights.scales is None else SCALED
    rows, columns = weights.indices.shape
    return Segment(gap, kind, item.dtype, rows, columns, len(weights.codebook))


def _shortest(content: bytes, *, pictures: bool) -> tuple[int, int, bytes]:
    """Coding, option and coded bytes of a stream: the smallest, and among near ones the quickest to decode."""
    if not content:
        return STORED, 0, b""
    sample = _sample(content)
    strategy = min((zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY), key=lambda each: len(_deflate(sample, each)))
    options = [index for index, values in enumerate(LZMA_OPTIONS) if bool(values[3]) == pictures]
    option = min(options, key=lambda each: len(_squeeze(sample, each)))
    best = (DEFLATE, 0, _deflate(content, strategy))
    if len(_squeeze(sample, option)) < _WORTH * len(_deflate(sample, strategy)):
        best = min(best, (LZMA, option, _squeeze(content, option)), key=lambda item: len(item[2]))
    return best if len(best[2]) < len(content) else (STORED, 0, content)


def _sample(content: bytes) -> bytes:
    """The whole of a short stream, evenly spaced pieces of a long one."""
    if len(content) <= 2 * _SAMPLES * _SAMPLE_BYTES:
        return content
    starts = np.linspace(0, len(content) - _SAMPLE_BYTES, _SAMPLES).astype(int)
    return b"".join(content[start : start + _SAMPLE_BYTES] for start in starts)


def _squeeze(content: bytes, option: int) -> bytes:
    lzma = lzma_module()
    return bytes(lzma.compress(content, lzma.FORMAT_RAW, filters=lzma_filters(option, len(content))))


def _deflate(content: bytes, strategy: int) -> bytes:
    # Huffman alone is the paper's code; with matches it is better for text and for mostly-zero weights
    coder = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy)
    return coder.compress(content) + coder.flush()
