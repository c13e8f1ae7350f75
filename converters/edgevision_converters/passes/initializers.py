"""Initializers are constants: none is listed as an input, and `Constant` nodes become initializers."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from edgevision.errors import UnsupportedOpError
from edgevision_converters.passes.editor import Array, Editor


def drop_initializer_inputs(model: ModelProto) -> ModelProto:
    """Remove initializers from the list of inputs, where exporters of IR version 3 had to put them.

    Requires: nothing.
    Ensures: inputs are what a caller feeds; IR version is 4 to 10. Newer exporters stamp newer ones than runtimes
    accept, and what these add (4-bit types, multi-device annotations) no float graph uses.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    constants = {tensor.name for tensor in copy.graph.initializer}
    fed = [value for value in model.graph.input if value.name not in constants]
    del copy.graph.input[:]
    copy.graph.input.extend(fed)
    copy.ir_version = min(max(copy.ir_version, 4), 10)
    return copy


def constants_to_initializers(model: ModelProto) -> ModelProto:
    """Turn `Constant` nodes into initializers of the same name.

    Requires: opset 12 or later in name only; older forms are read as well.
    Ensures: no `Constant` node; a constant that is itself an output of the graph keeps its value.

    Raises:
        UnsupportedOpError: a sparse or string constant.
    """
    editor = Editor(model)
    constants = [node for node in editor.nodes if node.op_type == "Constant" and not editor.is_output(node.output[0])]
    for node in constants:
        editor.set_constant(node.output[0], _value(node))
    editor.remove(constants)
    return editor.finish()


def _value(node: NodeProto) -> Array:
    entry = node.attribute[0]
    if entry.name == "value":
        return np.asarray(numpy_helper.to_array(entry.t))
    if entry.name in ("value_float", "value_floats"):
        return np.asarray(helper.get_attribute_value(entry), np.float32)
    if entry.name in ("value_int", "value_ints"):
        return np.asarray(helper.get_attribute_value(entry), np.int64)
    raise UnsupportedOpError(f"node {node.name}: a Constant of kind {entry.name} has no place in a vision network")
