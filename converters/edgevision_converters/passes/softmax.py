"""A softmax over the last axis needs no reshaping around it."""

from __future__ import annotations

from onnx import ModelProto

from edgevision_converters.passes.editor import Editor, attribute, set_attributes
from edgevision_converters.passes.shapes import static_shapes


def unwrap_softmax(model: ModelProto) -> ModelProto:
    """Take the flattening around `Softmax` and `LogSoftmax` away, which the upgrade from opset 12 puts there.

    Requires: static shapes; constants are initializers; opset 13 or later.
    Ensures: no softmax over the last axis stands between two reshapes that cancel out and keep that axis.
    """
    editor = Editor(model)
    shapes = static_shapes(model)
    for node in list(editor.nodes):
        if node.op_type not in ("Softmax", "LogSoftmax"):
            continue
        flatten = editor.producer(node.input[0])
        restore = editor.only_consumer(node.output[0])
        if flatten is None or restore is None or restore.op_type != "Reshape":
            continue
        if flatten.op_type not in ("Flatten", "Reshape") or restore.input[0] != node.output[0]:
            continue
        whole, flat = shapes.get(flatten.input[0]), shapes.get(node.input[0])
        if not whole or not flat or None in whole or shapes.get(restore.output[0]) != whole:
            continue
        if attribute(node, "axis", -1) not in (-1, len(flat) - 1) or flat[-1] != whole[-1]:
            continue
        node.input[0] = flatten.input[0]
        node.output[0] = restore.output[0]
        set_attributes(node, axis=-1)
        editor.remove([restore])
    return editor.finish()
