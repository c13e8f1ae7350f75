"""Means over the whole map are `GlobalAveragePool`, in whatever op they were written."""

from __future__ import annotations

from onnx import ModelProto, NodeProto

from edgevision_converters.passes.editor import Editor, attribute
from edgevision_converters.passes.shapes import Shape, static_shapes


def unify_global_pools(model: ModelProto) -> ModelProto:
    """Turn `ReduceMean` over height and width, and `AveragePool` over the whole map, into `GlobalAveragePool`.

    Requires: static shapes; constants are initializers.
    Ensures: a mean over both spatial axes of a 4-D tensor is a `GlobalAveragePool`, followed by a `Flatten` where
        the axes are dropped. The node name and the output name stay.
    """
    editor = Editor(model)
    shapes = static_shapes(model)
    for node in list(editor.nodes):
        shape = shapes.get(node.input[0]) if node.input else None
        if shape is None or len(shape) != 4:
            continue
        if node.op_type == "ReduceMean" and _reduces_space(editor, node):
            _replace(editor, node, keep=bool(attribute(node, "keepdims", 1)))
        elif node.op_type == "AveragePool" and _covers_map(node, shape):
            _replace(editor, node, keep=True)
    return editor.finish()


def _reduces_space(editor: Editor, node: NodeProto) -> bool:
    axes = attribute(node, "axes")
    if axes is None and len(node.input) > 1 and node.input[1]:
        constant = editor.input_constant(node, 1)
        axes = None if constant is None else constant.reshape(-1).tolist()
    return axes is not None and sorted(axis % 4 for axis in axes) == [2, 3]


def _covers_map(node: NodeProto, shape: Shape) -> bool:
    if any(attribute(node, "pads", [0])) or attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return False
    if set(attribute(node, "dilations", [1])) != {1}:
        return False
    return tuple(attribute(node, "kernel_shape")) == shape[2:]


def _replace(editor: Editor, node: NodeProto, *, keep: bool) -> None:
    source, result, name = node.input[0], node.output[0], node.name
    pooled = result if keep else editor.unique(f"{result}.pooled")
    node.CopyFrom(editor.make_node("GlobalAveragePool", [source], [pooled], name))
    if not keep:
        flatten = editor.make_node("Flatten", [pooled], [result], f"{name}_flatten", axis=1)
        editor.insert_after(node, flatten)
    editor.changed()
