"""Transposes that follow one another are one, and none where they cancel out."""

from __future__ import annotations

from onnx import ModelProto

from edgevision_converters.passes.editor import Editor, attribute, set_attributes


def merge_transposes(model: ModelProto) -> ModelProto:
    """Let a `Transpose` of a `Transpose` read the first one's input, with the product of both permutations.

    Requires: constants are initializers.
    Ensures: no `Transpose` reads a `Transpose`. A permutation that has become the identity is `remove_noops`' to
        take out, a first one that nobody reads any more is `remove_dead`'s.
    """
    editor = Editor(model)
    for node in editor.nodes:
        before = editor.producer(node.input[0]) if node.op_type == "Transpose" else None
        if before is None or before.op_type != "Transpose":
            continue
        first, second = attribute(before, "perm"), attribute(node, "perm")
        if first is None and second is None:
            continue  # two reversals of unknown rank; exporters write permutations out
        rank = len(first or second)
        first = first or list(range(rank))[::-1]
        second = second or list(range(rank))[::-1]
        node.input[0] = before.input[0]
        set_attributes(node, perm=[first[axis] for axis in second])
        editor.changed()
    return editor.finish()
