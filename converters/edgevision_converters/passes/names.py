"""Every node gets a name of its own."""

from __future__ import annotations

from onnx import ModelProto

from edgevision_converters.passes.editor import Editor


def name_nodes(model: ModelProto) -> ModelProto:
    """Name unnamed nodes after their op and first output, and tell namesakes apart.

    Requires: nothing.
    Ensures: every node has a non-empty name that no other node has; names that were given and unique stay.
    """
    editor = Editor(model)
    given = [node.name for node in editor.nodes]
    taken = {name for name in given if name}
    seen: set[str] = set()
    for node in editor.nodes:
        if node.name and node.name not in seen:
            seen.add(node.name)
            continue
        hint = node.name or f"{node.op_type}_{next((name for name in node.output if name), 'none')}"
        name, number = hint, 1
        while name in taken:
            name, number = f"{hint}_{number}", number + 1
        node.name = name
        taken.add(name)
        seen.add(name)
    return editor.finish()
