"""Reading anybody's ONNX file without trusting it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import GraphProto, ModelProto, TensorProto

from edgevision.errors import ModelError


def load_model(path: str | Path) -> ModelProto:
    """Read an ONNX file, and the external data it names inside its own folder.

    Raises:
        ModelError: the file is missing, truncated, no ONNX model, or its external data is missing or lies elsewhere.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"{path}: no such ONNX file") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    model = parse_model(data, str(path))
    tensors = [tensor for tensor in _tensors(model.graph) if tensor.data_location == TensorProto.EXTERNAL]
    for tensor in tensors:
        _check_external(tensor, path)
    if tensors:
        onnx.load_external_data_for_model(model, str(path.parent))
    return model


def parse_model(data: bytes, label: str) -> ModelProto:
    """Parse a serialized model.

    Raises:
        ModelError: the bytes are no ONNX model; the message starts with ``label``.
    """
    if not data:
        raise ModelError(f"{label}: the file is empty; expected an ONNX model")
    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError) as error:
        raise ModelError(
            f"{label}: not a readable ONNX model ({len(data)} bytes; truncated, or another format): {error}"
        ) from error
    if not model.graph.node or not model.opset_import:
        raise ModelError(f"{label}: holds no ONNX graph ({len(data)} bytes; truncated, or another format)")
    return model


def require_internal_data(model: ModelProto, label: str) -> None:
    """Refuse a model in memory whose weights lie in files that only its path could lead to.

    Raises:
        ModelError: an initializer is external.
    """
    for tensor in _tensors(model.graph):
        if tensor.data_location == TensorProto.EXTERNAL:
            raise ModelError(
                f"{label}: initializer {tensor.name!r} lies in an external file; give the path of the ONNX file"
            )


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for entry in node.attribute:
            if entry.HasField("t"):
                yield entry.t
            yield from entry.tensors
            if entry.HasField("g"):
                yield from _tensors(entry.g)


def _check_external(tensor: TensorProto, path: Path) -> None:
    info = {entry.key: entry.value for entry in tensor.external_data}
    location = info.get("location", "")
    folder = path.parent.resolve()
    data = Path(os.path.normpath(folder / location))
    if not location or Path(location).is_absolute() or not data.resolve().is_relative_to(folder):
        raise ModelError(
            f"{path}: initializer {tensor.name!r} names external data {location!r} outside the model's folder; "
            "refused: keep the data file beside the model"
        )
    if not data.is_file():
        raise ModelError(
            f"{path}: external data {location!r} of initializer {tensor.name!r} is missing; copy it beside the model"
        )
    try:
        offset, length = int(info.get("offset", 0)), int(info.get("length", 0))
    except ValueError:
        raise ModelError(f"{path}: initializer {tensor.name!r} has a damaged external data entry: {info}") from None
    size = data.stat().st_size
    if offset < 0 or length < 0 or offset + length > size:
        raise ModelError(
            f"{path}: external data {location!r} is truncated: initializer {tensor.name!r} needs bytes {offset} to "
            f"{offset + length}, the file has {size}"
        )
