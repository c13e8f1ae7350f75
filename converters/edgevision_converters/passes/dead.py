"""What no output depends on goes."""

from __future__ import annotations

from onnx import ModelProto

from edgevision_converters.passes.editor import Editor


def remove_dead(model: ModelProto) -> ModelProto:
    """Remove nodes that no output of the graph depends on, and initializers that no node reads.

    Requires: topological order.
    Ensures: every node and every initializer contributes to an output.
    """
    editor = Editor(model)
    needed = {value.name for value in model.graph.output}
    dead = []
    for node in reversed(editor.nodes):
        if any(name in needed for name in node.output if name):
            needed.update(name for name in node.input if name)
        else:
            dead.append(node)
    editor.remove(dead)
    editor.drop_constants([name for name in editor.constant_names if name not in needed])
    return editor.finish()
