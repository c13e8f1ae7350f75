"""`Graph`: the canonical FP32 ONNX of a model, with the look-ups every pass needs. Host side: needs onnx.

Canonical means: one float32 input of 4 dimensions with a free batch, static height and width; opset 17 or later;
batch norms folded, RepVGG blocks fused; every node named; shapes inferred; weights finite; no external data.
`edgevision_converters.canonical` makes it from any ONNX file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgevision.dependencies import require
from edgevision.errors import ModelError
from edgevision.files import sha256_bytes, write_bytes

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


class Graph:
    """A canonical ONNX model, read-only: passes copy the model, change it and make a new `Graph`."""

    def __init__(self, model: ModelProto) -> None:
        require("onnx", purpose="read model graphs")
        self.model = model

    @classmethod
    def open(cls, path: str | Path) -> Graph:
        """Read a canonical graph from an ONNX file.

        Raises:
            ModelError: the file is missing or no ONNX model.
        """
        onnx = require("onnx", purpose="read model graphs")
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

        try:
            model = onnx.load(str(path), load_external_data=False)
        except FileNotFoundError:
            raise ModelError(f"{path}: no such ONNX file") from None
        except (DecodeError, OSError, ValueError) as error:
            raise ModelError(f"{path}: not a readable ONNX model: {error}") from error
        if not model.graph.node or len(model.graph.input) != 1:
            raise ModelError(f"{path}: not a canonical graph; make one with edgevision_converters.canonical")
        if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
            raise ModelError(f"{path}: a canonical graph has no external data; canonicalize the file first")
        return cls(model)

    def save(self, path: str | Path) -> Path:
        """Write the ONNX file atomically. Raises `OutputError` where that is not possible."""
        write_bytes(path, self.to_bytes())
        return Path(path)

    def to_bytes(self) -> bytes:
        """The serialized ONNX model, the same bytes for the same model."""
        return bytes(self.model.SerializeToString(deterministic=True))

    @cached_property
    def sha256(self) -> str:
        """Hash of `to_bytes`."""
        return sha256_bytes(self.to_bytes())

    @property
    def name(self) -> str:
        """Name of the graph, as the model's author gave it."""
        return str(self.model.graph.name)

    @property
    def metadata(self) -> dict[str, str]:
        """What is written down about the graph: ``source_sha256``, ``export_max_difference``…"""
        return {entry.key: entry.value for entry in self.model.metadata_props}

    def with_metadata(self, values: Mapping[str, str]) -> Graph:
        """The same graph with ``values`` added to its metadata, or in the place of those of the same key."""
        onnx = require("onnx", purpose="read model graphs")
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, {**self.metadata, **values})
        return Graph(model)

    def with_initializers(self, values: Mapping[str, npt.NDArray[Any]]) -> Graph:
        """The same graph with other constant tensors in the place of those of the same name."""
        onnx = require("onnx", purpose="read model graphs")
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for tensor in model.graph.initializer:
            if tensor.name in values:
                tensor.CopyFrom(onnx.numpy_helper.from_array(values[tensor.name], tensor.name))
        return Graph(model)

    @property
    def nodes(self) -> list[NodeProto]:
        """Nodes in topological order."""
        return list(self.model.graph.node)

    @cached_property
    def initializers(self) -> dict[str, npt.NDArray[Any]]:
        """Constant tensors by name."""
        from onnx import numpy_helper

        return {tensor.name: numpy_helper.to_array(tensor) for tensor in self.model.graph.initializer}

    @cached_property
    def producer(self) -> dict[str, NodeProto]:
        """Tensor name → the node that makes it."""
        return {name: node for node in self.nodes for name in node.output if name}

    @cached_property
    def consumers(self) -> dict[str, list[NodeProto]]:
        """Tensor name → the nodes that read it, in order; nodes that read it twice are listed once."""
        readers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                if name:
                    readers.setdefault(name, []).append(node)
        return readers

    @property
    def input_name(self) -> str:
        """Name of the picture input."""
        return str(self.model.graph.input[0].name)

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """Shape of the picture input; None for the batch."""
        return _shape(self.model.graph.input[0]) or ()

    @cached_property
    def output_names(self) -> list[str]:
        """Names of the outputs, in order."""
        return [value.name for value in self.model.graph.output]

    @cached_property
    def shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Inferred shape of every tensor that has one; None for free dimensions."""
        graph = self.model.graph
        known: dict[str, tuple[int | None, ...]] = {}
        for value in [*graph.input, *graph.value_info, *graph.output]:
            shape = _shape(value)
            if shape is not None:
                known[value.name] = shape
        known.update({name: tuple(array.shape) for name, array in self.initializers.items()})
        return known


def attributes(node: NodeProto) -> dict[str, Any]:
    """A node's attributes as Python values (ints, floats, strings, lists, numpy arrays)."""
    from onnx import helper, numpy_helper

    values: dict[str, Any] = {}
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode()
        elif attribute.type == attribute.TENSOR:
            value = numpy_helper.to_array(value)
        elif isinstance(value, Iterable) and not isinstance(value, (str, np.ndarray)):
            value = [item.decode() if isinstance(item, bytes) else item for item in value]
        values[attribute.name] = value
    return values


def _shape(value: Any) -> tuple[int | None, ...] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)


def replace_nodes(model: ModelProto, nodes: Iterable[NodeProto]) -> None:
    """Put copies of ``nodes``, which may be the model's own, in the place of the nodes of ``model``."""
    # the copies come first: emptying the field takes its own nodes away
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
