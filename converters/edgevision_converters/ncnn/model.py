"""`NcnnModel`: the layers of a ``.param`` with the weights of its ``.bin``, read, changed and written.

A tagged blob of the ``.bin`` starts with a little-endian uint32 (0 or 0x0002C056 float32, 0x01306B47 float16,
0x000D4B38 int8) and is padded to a multiple of 4 bytes; a raw one is float32 without either.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevision.errors import ModelError
from edgevision_converters.ncnn.param import Layer, format_param, parse_param
from edgevision_converters.ncnn.schema import WEIGHTED, Slot, weight_slots

TAG_FLOAT32 = 0
TAG_FLOAT32_UNSCALED = 0x0002C056
TAG_FLOAT16 = 0x01306B47
TAG_INT8 = 0x000D4B38

_DTYPES = {TAG_FLOAT32: "<f4", TAG_FLOAT32_UNSCALED: "<f4", TAG_FLOAT16: "<f2", TAG_INT8: "i1"}


@dataclass(frozen=True)
class Weight:
    """One blob of the ``.bin``: flat values and its tag, None for a raw blob."""

    values: npt.NDArray[Any]
    tag: int | None

    @classmethod
    def raw(cls, values: npt.ArrayLike) -> Weight:
        """Plain float32 values."""
        return cls(np.asarray(values, "<f4").ravel(), None)

    @classmethod
    def int8(cls, values: npt.NDArray[np.int8]) -> Weight:
        """Integer weights."""
        return cls(values.ravel(), TAG_INT8)

    def to_bytes(self) -> bytes:
        """The blob as it stands in the file."""
        if self.tag is None:
            return np.ascontiguousarray(self.values, "<f4").tobytes()
        data = np.ascontiguousarray(self.values, _DTYPES[self.tag]).tobytes()
        return struct.pack("<I", self.tag) + data + bytes(-len(data) % 4)


@dataclass
class NcnnModel:
    """Layers in order of execution, and the weights of each by layer name (unique among layers with weights)."""

    layers: list[Layer]
    weights: dict[str, list[Weight]] = field(default_factory=dict)

    @classmethod
    def from_bytes(cls, param: bytes | str, data: bytes) -> NcnnModel:
        """Read a ``.param`` and its ``.bin``.

        Raises:
            ModelError: either is damaged, or they do not belong together.
        """
        try:
            layers = parse_param(param if isinstance(param, str) else param.decode("utf-8"))
        except UnicodeDecodeError:
            raise ModelError("not an ncnn .param file: it is no text") from None
        weights: dict[str, list[Weight]] = {}
        offset = 0
        for layer in layers:
            slots = weight_slots(layer)
            # pnnx repeats the names of Split layers; those of layers with weights are keys here
            if slots and layer.name in weights:
                raise ModelError(f"ncnn .param names layer {layer.name!r} with weights twice")
            for slot in slots:
                weight, offset = _read_weight(data, offset, slot, layer)
                weights.setdefault(layer.name, []).append(weight)
        if offset != len(data):
            raise ModelError(f"ncnn .bin has {len(data)} bytes, the .param describes {offset}: not of one model")
        return cls(layers, weights)

    def to_bytes(self) -> tuple[bytes, bytes]:
        """``.param`` and ``.bin``, the same bytes for the same model."""
        blobs = [weight.to_bytes() for layer in self.layers for weight in self.weights.get(layer.name, [])]
        return format_param(self.layers).encode(), b"".join(blobs)

    @property
    def inputs(self) -> list[str]:
        """Blobs that are fed."""
        return [top for layer in self.layers if layer.type == "Input" for top in layer.tops]

    @property
    def outputs(self) -> list[str]:
        """Blobs that nobody reads, in order."""
        read = {blob for layer in self.layers for blob in layer.bottoms}
        return [top for layer in self.layers for top in layer.tops if top not in read]

    def readers(self) -> dict[str, list[Layer]]:
        """Blob → the layers that read it, seen through Split."""
        direct: dict[str, list[Layer]] = {}
        for layer in self.layers:
            for blob in layer.bottoms:
                direct.setdefault(blob, []).append(layer)
        seen: dict[str, list[Layer]] = {}
        # from the end, so that a Split's own tops are known before its bottom
        for layer in reversed(self.layers):
            for top in layer.tops:
                found = direct.get(top, [])
                if len(found) == 1 and found[0].type == "Split":
                    found = [reader for branch in found[0].tops for reader in seen[branch]]
                    # a branch nobody reads is an output of the model
                seen[top] = found
        return seen

    def output_behind(self, blob: str) -> bool:
        """Whether ``blob``, or a branch of the Split that reads it, is an output of the model."""
        outputs = set(self.outputs)
        if blob in outputs:
            return True
        splits = [layer for layer in self.layers if layer.type == "Split" and blob in layer.bottoms]
        return any(self.output_behind(top) for split in splits for top in split.tops)

    def to_float16(self) -> NcnnModel:
        """The same model with its large weights stored as float16; biases and constants stay float32.

        Weights beyond float16's range (65504) keep their blob in float32.
        """
        weights = dict(self.weights)
        for layer in self.layers:
            if layer.type in WEIGHTED and layer.name in weights:
                weights[layer.name] = [_halved(weight) for weight in weights[layer.name]]
        return NcnnModel(self.layers, weights)


def _halved(weight: Weight) -> Weight:
    largest = float(np.finfo(np.float16).max)
    if weight.tag not in (TAG_FLOAT32, TAG_FLOAT32_UNSCALED) or np.abs(weight.values).max(initial=0) > largest:
        return weight
    return Weight(weight.values.astype("<f2"), TAG_FLOAT16)


def _read_weight(data: bytes, offset: int, slot: Slot, layer: Layer) -> tuple[Weight, int]:
    tag: int | None = None
    if slot.count < 0:
        raise ModelError(f"layer {layer.name} ({layer.type}) announces {slot.count} weights")
    if slot.tagged:
        if len(data) < offset + 4:
            raise _too_short(data, layer)
        (tag,) = struct.unpack_from("<I", data, offset)
        offset += 4
        if tag not in _DTYPES:
            raise ModelError(f"layer {layer.name} ({layer.type}): unknown weight tag {tag:#010x} in the .bin")
    dtype = np.dtype("<f4" if tag is None else _DTYPES[tag])
    size = dtype.itemsize * slot.count
    if len(data) < offset + size:
        raise _too_short(data, layer)
    values = np.frombuffer(data, dtype, slot.count, offset)
    return Weight(values, tag), offset + size + -size % 4


def _too_short(data: bytes, layer: Layer) -> ModelError:
    return ModelError(f"ncnn .bin ends after {len(data)} bytes, within layer {layer.name} ({layer.type})")
