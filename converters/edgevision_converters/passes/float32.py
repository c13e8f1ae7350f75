"""Half-precision models become float32 ones: canonical graphs carry the precision that targets quantize from."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, TypeProto, helper, numpy_helper

from edgevision_converters.passes.editor import Editor, attribute, set_attributes

_HALF = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})


def widen_to_float32(model: ModelProto) -> ModelProto:
    """Turn float16 and bfloat16 inputs, outputs, weights, constants and casts into float32.

    Requires: no local functions.
    Ensures: no tensor of half precision. Values are the same; the results are those of the same weights computed in
        float32, closer to the network that was rounded than the file's own.
    """
    if not _is_half(model):
        return model
    editor = Editor(model)
    for name, tensor in editor.tensors():
        if tensor.data_type in _HALF:
            editor.set_constant(name, numpy_helper.to_array(tensor).astype(np.float32))
    for node in editor.nodes:
        _widen_node(node)
    widened = editor.finish()
    for value in [*widened.graph.input, *widened.graph.output, *widened.graph.value_info]:
        _widen_type(value.type)
    return widened


def _is_half(model: ModelProto) -> bool:
    graph = model.graph
    if any(tensor.data_type in _HALF for tensor in graph.initializer):
        return True
    if any(value.type.tensor_type.elem_type in _HALF for value in [*graph.input, *graph.output]):
        return True
    return any(_half_attribute(node) for node in graph.node)


def _half_attribute(node: NodeProto) -> bool:
    if node.op_type == "Cast" and attribute(node, "to") in _HALF:
        return True
    return any(entry.HasField("t") and entry.t.data_type in _HALF for entry in node.attribute)


def _widen_node(node: NodeProto) -> None:
    for key in ("to", "dtype"):  # Cast; EyeLike, RandomNormal and their kin
        if attribute(node, key) in _HALF:
            set_attributes(node, **{key: int(TensorProto.FLOAT)})
    for entry in node.attribute:
        if entry.HasField("t") and entry.t.data_type in _HALF:
            widened = numpy_helper.from_array(numpy_helper.to_array(entry.t).astype(np.float32), entry.t.name)
            entry.CopyFrom(helper.make_attribute(entry.name, widened))


def _widen_type(value: TypeProto) -> None:
    if value.tensor_type.elem_type in _HALF:
        value.tensor_type.elem_type = TensorProto.FLOAT
