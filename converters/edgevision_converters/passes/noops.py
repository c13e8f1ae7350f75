"""Nodes that return what they were given go."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto

from edgevision_converters.passes.editor import Editor, attribute
from edgevision_converters.passes.shapes import infer, shape_of


def remove_noops(model: ModelProto) -> ModelProto:
    """Remove Identity, Dropout at inference, and Cast, Reshape, Expand, Transpose, Pad, Slice… that change nothing.

    Requires: static shapes; constants are initializers.
    Ensures: none of the ops above leaves type, shape and values as they were, save where a graph output that is
        also an input needs a node of its own.
    """
    editor = Editor(model)
    values = infer(model)
    for node in list(editor.nodes):
        if not node.input or not _changes_nothing(editor, node, values):
            continue
        if any(name and (editor.consumers(name) or editor.is_output(name)) for name in node.output[1:]):
            continue  # somebody reads Dropout's mask
        editor.bypass(node)
    return editor.finish()


def _changes_nothing(editor: Editor, node: NodeProto, values: dict) -> bool:  # type: ignore[type-arg]
    op = node.op_type
    if op == "Identity":
        return editor.constant(node.input[0]) is None or not editor.is_output(node.output[0])
    if op == "Dropout":
        training = editor.input_constant(node, 2)
        return len(node.input) < 3 or not node.input[2] or (training is not None and not bool(training))
    source, result = values.get(node.input[0]), values.get(node.output[0])
    if source is None or result is None:
        return False
    before, after = shape_of(source), shape_of(result)
    if op == "Cast":
        return bool(source.type.tensor_type.elem_type == result.type.tensor_type.elem_type)
    same = before is not None and None not in before and before == after
    if op in ("Reshape", "Expand", "Flatten", "Squeeze", "Unsqueeze"):
        return same
    if op in ("Concat", "Sum", "Max", "Min", "Mean"):
        return len(node.input) == 1
    if op == "Transpose":
        perm = attribute(node, "perm")
        return perm is not None and perm == sorted(perm)
    if op == "Pad":
        pads = editor.input_constant(node, 1)
        return pads is not None and not pads.any()
    if op == "Slice":
        steps = editor.input_constant(node, 4)
        return same and (len(node.input) < 5 or (steps is not None and bool(np.all(steps == 1))))
    if op in ("AveragePool", "MaxPool"):
        return same and set(attribute(node, "kernel_shape")) == {1}
    return _neutral_operand(editor, node) and same


def _neutral_operand(editor: Editor, node: NodeProto) -> bool:
    """x + 0, x − 0, x · 1, x / 1 with a constant second operand."""
    neutral = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0}.get(node.op_type)
    operand = editor.input_constant(node, 1)
    return neutral is not None and operand is not None and bool(np.all(operand == neutral))
