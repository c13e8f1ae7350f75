"""`to_half`: a float32 model with float16 inside and float32 at its inputs and outputs.

TensorRT 8 and 10 can choose float16 themselves (a builder flag); 11 cannot: its networks are typed by the file. A
typed file is the one form that all of them take.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgevision.errors import ModelError, UnsupportedOpError
from edgevision_converters.tensorrt.lookup import where

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

# Rounded to 0, an epsilon under a square root or a divisor would turn into an infinity: keep the least float16.
_LEAST = float(np.finfo(np.float16).smallest_subnormal)
_GREATEST = float(np.finfo(np.float16).max)


def to_half(model: ModelProto) -> ModelProto:
    """A float16 copy of a float32 model; its inputs and outputs stay float32.

    Raises:
        ModelError: a weight is beyond ±65504, the greatest float16.
        UnsupportedOpError: an op has no float16 form, or the graph has branches or loops.
    """
    from onnx import ModelProto, TensorProto

    half = ModelProto()
    half.CopyFrom(model)
    graph = half.graph
    kept = _float32_only(half)
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in kept:
            tensor.CopyFrom(_half_tensor(tensor))
    renamed = {
        value.name: f"{value.name}_half"
        for value in [*graph.input, *graph.output]
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    for node in graph.node:
        _half_attributes(node)
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    _cast_borders(half, renamed)
    # types of inner tensors have changed; every reader infers them again
    del graph.value_info[:]
    return half


def _float32_only(model: ModelProto) -> set[str]:
    """Initializers that an op takes in float32 alone (the scales of Resize)."""
    from onnx import defs

    version = next(opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx"))
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    kept: set[str] = set()
    for node in model.graph.node:
        schema = defs.get_schema(node.op_type, version, node.domain)
        types = {constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints}
        for position, name in enumerate(node.input):
            formal = schema.inputs[min(position, len(schema.inputs) - 1)]
            allowed = types.get(formal.type_str, [formal.type_str])
            if not name or "tensor(float16)" in allowed or "tensor(float)" not in allowed:
                continue
            if name not in constants:
                raise UnsupportedOpError(f"{where(node)} has no float16 form; convert with precision fp32")
            kept.add(name)
    return kept


def _half_attributes(node: NodeProto) -> None:
    from onnx import TensorProto

    for attribute in node.attribute:
        if attribute.HasField("g") or attribute.graphs:
            raise UnsupportedOpError(f"{where(node)} holds a graph of its own; convert with precision fp32")
        if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(_half_tensor(attribute.t))
        if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16


def _half_tensor(tensor: TensorProto) -> TensorProto:
    from onnx import numpy_helper

    values: npt.NDArray[Any] = numpy_helper.to_array(tensor)
    # bounds without end (Clip, masks) stay without end
    if np.abs(values[np.isfinite(values)]).max(initial=0.0) > _GREATEST:
        raise ModelError(
            f"{tensor.name or 'a constant'!r} holds {np.abs(values).max():.4g}; the greatest float16 is "
            f"{_GREATEST:.0f}: convert with precision fp32"
        )
    small = (values != 0) & (np.abs(values) < _LEAST)
    half = np.where(small, np.copysign(_LEAST, values), values).astype(np.float16)
    return numpy_helper.from_array(half, tensor.name)


def _cast_borders(model: ModelProto, renamed: dict[str, str]) -> None:
    from onnx import TensorProto, helper

    graph = model.graph
    before = [
        helper.make_node("Cast", [v.name], [renamed[v.name]], f"{v.name}_to_half", to=TensorProto.FLOAT16)
        for v in graph.input
        if v.name in renamed
    ]
    after = [
        helper.make_node("Cast", [renamed[v.name]], [v.name], f"{v.name}_to_float", to=TensorProto.FLOAT)
        for v in graph.output
        if v.name in renamed
    ]
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
