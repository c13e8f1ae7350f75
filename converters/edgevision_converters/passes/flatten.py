"""Flattening is `Flatten`, which knows of no batch size."""

from __future__ import annotations

import math

from onnx import ModelProto

from edgevision_converters.passes.editor import Editor
from edgevision_converters.passes.shapes import static_shapes


def unify_flattens(model: ModelProto) -> ModelProto:
    """Turn `Reshape`, `Squeeze` and `Flatten` of ``[B, …]`` to ``[B, everything else]`` into `Flatten` of axis 1.

    Requires: static shapes; the batch is the first dimension where it has not been mixed with others (a wrong guess
        is found when the free batch is proved).
    Ensures: no `Reshape` or `Squeeze` does what `Flatten` does.
    """
    editor = Editor(model)
    shapes = static_shapes(model)
    base = shapes[model.graph.input[0].name][0]
    for node in editor.nodes:
        if node.op_type not in ("Reshape", "Squeeze"):
            continue
        before, after = shapes.get(node.input[0]), shapes.get(node.output[0])
        if not before or not after or None in before or len(before) < 3 or before[0] != base:
            continue
        if after == (before[0], math.prod(int(size or 0) for size in before[1:])):
            node.CopyFrom(editor.make_node("Flatten", [node.input[0]], [node.output[0]], node.name, axis=1))
            editor.changed()
    return editor.finish()
