"""What does not depend on the picture is computed once, here."""

from __future__ import annotations

import math

import numpy as np
from onnx import ModelProto, NodeProto, helper

from edgevision.errors import ModelError
from edgevision_converters.passes.editor import Array, Editor, attribute
from edgevision_converters.passes.numerics import run
from edgevision_converters.passes.shapes import Shape, static_shapes

# A constant that grows beyond this when computed (an Expand, a Tile) is cheaper to compute than to ship: 32 MiB.
_MOST_ELEMENTS = 8 << 20


def fold_constants(model: ModelProto) -> ModelProto:
    """Replace everything that depends on constants and static shapes alone by its value.

    Requires: static shape of the input; no `Constant` nodes; no random numbers.
    Ensures: no `Shape` or `Size` of a static tensor, no node with constant inputs alone (results over 32 MiB
        excepted). Values are ONNX Runtime's own.
    """
    while True:
        editor = Editor(model)
        shapes = static_shapes(model)
        measured = _fold_shapes(editor, shapes)
        computed = _fold_nodes(editor, shapes)
        if not measured and not computed:
            return model
        # a Reshape whose target has become constant makes more shapes static
        model = editor.finish()


def _fold_shapes(editor: Editor, shapes: dict[str, Shape]) -> bool:
    folded = []
    for node in editor.nodes:
        shape = shapes.get(node.input[0]) if node.op_type in ("Shape", "Size") else None
        if shape is None or any(dimension is None for dimension in shape) or editor.is_output(node.output[0]):
            continue
        if node.op_type == "Size":
            value = np.asarray(math.prod(int(dimension or 0) for dimension in shape), np.int64)
        else:
            value = np.asarray(shape[attribute(node, "start", 0) : attribute(node, "end", None)], np.int64)
        editor.set_constant(node.output[0], value)
        folded.append(node)
    editor.remove(folded)
    return bool(folded)


def _fold_nodes(editor: Editor, shapes: dict[str, Shape]) -> bool:
    constant = set(editor.constant_names)
    chosen: list[NodeProto] = []
    for node in editor.nodes:
        if _foldable(editor, node, shapes) and all(name in constant for name in node.input if name):
            chosen.append(node)
            constant.update(node.output)
    if not chosen:
        return False
    inside = {id(node) for node in chosen}
    frontier = [
        name
        for node in chosen
        for name in node.output
        if name and any(id(reader) not in inside for reader in editor.consumers(name))
    ]
    for name, value in _evaluate(editor, chosen, frontier).items():
        editor.set_constant(name, value)
    editor.remove(chosen)
    return True


def _foldable(editor: Editor, node: NodeProto, shapes: dict[str, Shape]) -> bool:
    if any(entry.HasField("g") for entry in node.attribute):
        return False
    if any(editor.is_output(name) for name in node.output):
        return False  # an output of the graph needs a node
    sizes = [math.prod(dimension or 1 for dimension in shapes.get(name, ())) for name in node.output if name]
    return max(sizes, default=0) <= _MOST_ELEMENTS


def _evaluate(editor: Editor, nodes: list[NodeProto], wanted: list[str]) -> dict[str, Array]:
    model = ModelProto()
    model.ir_version = editor.model.ir_version
    model.opset_import.extend(editor.model.opset_import)
    model.graph.name = "constants"
    model.graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    model.graph.initializer.extend(tensor for name, tensor in editor.tensors() if name in read)
    # an output without a type gets the one that the engine infers
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in wanted)
    if not wanted:
        return {}
    try:
        return dict(zip(wanted, run(model, {}, wanted), strict=True))
    except ModelError as error:
        names = ", ".join(node.name for node in nodes[:3])
        raise ModelError(f"constants made by {names} cannot be computed: {error}") from error
