"""The batch: fixed while the graph is worked on, then set free and proved."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, ValueInfoProto

from edgevision_converters.passes.editor import Editor, set_attributes
from edgevision_converters.passes.shapes import (
    BATCH,
    Shape,
    annotate,
    infer,
    known,
    set_batch,
    shape_of,
    skeleton,
    static_shapes,
)

# Inferring shapes at three times the batch shows which dimension of every tensor the batch is.
_FACTOR = 3


def fix_batch(model: ModelProto, batch: int) -> ModelProto:
    """Give the input a batch of ``batch`` and drop shapes that the file claims for everything else.

    Requires: one 4-D input.
    Ensures: the input's first dimension is static; outputs and intermediate tensors carry types only.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    set_batch(copy.graph.input[0], batch)
    del copy.graph.value_info[:]
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    return copy


def free_batch(model: ModelProto) -> ModelProto | None:
    """Make the batch a free dimension, rewriting constants that have its size written into them.

    A `Reshape` to ``[1, 2, 24, …]`` becomes one to ``[-1, 2, 24, …]``, with −1 at the place to which the row-major
    order takes the batch; `sizes` of a `Resize` become scales. The caller proves the result numerically.

    Requires: static shapes, batch included; constants are initializers.
    Ensures: a model with input ``[batch, C, H, W]`` whose outputs all start with the batch, or None where that
        cannot be had.
    """
    one = static_shapes(model)
    base = one[model.graph.input[0].name][0]
    light = skeleton(model)
    settled: set[str] = set()
    while True:
        many = static_shapes(light, batch=_FACTOR * (base or 1))
        editor = Editor(light)
        rewritten = _rewrite(editor, one, many, settled)
        if not rewritten:
            break
        settled |= rewritten
        light = editor.finish()
    freed = _graft(model, light)
    batch_one, batch_many = infer(freed), infer(freed, batch=_FACTOR * (base or 1))
    if not all(_starts_with_batch(batch_one, batch_many, value.name, base) for value in model.graph.output):
        return None
    set_batch(freed.graph.input[0], BATCH)
    return annotate(freed, batch_one, batch_many)


def _rewrite(editor: Editor, one: dict[str, Shape], many: dict[str, Shape], settled: set[str]) -> set[str]:
    """Rewrite every node whose inputs are known to carry the batch right; names of the nodes rewritten."""
    stale: set[str] = set()  # tensors after a node that has just been rewritten: their shapes are of before
    rewritten: set[str] = set()
    for node in editor.nodes:
        if any(name in stale for name in node.input):
            stale.update(node.output)
        elif node.op_type in _RULES and node.name not in settled and _RULES[node.op_type](editor, node, one, many):
            stale.update(node.output)
            rewritten.add(node.name)
    return rewritten


def _rewrite_reshape(editor: Editor, node: NodeProto, one: dict[str, Shape], many: dict[str, Shape]) -> bool:
    before, after = known(one.get(node.input[0])), known(one.get(node.output[0]))
    grown = known(many.get(node.input[0]))
    if editor.input_constant(node, 1) is None or before is None or after is None or grown is None:
        return False
    axis = _batch_axis(before, grown)
    if axis is None:
        return False
    # the batch is the outer part of its axis; elements keep their order, so as many as stood before it still do
    outer = math.prod(before[:axis])
    place = next((place for place in range(len(after)) if math.prod(after[:place]) == outer), None)
    if place is None:
        return False
    wanted = tuple(size * _FACTOR if index == place else size for index, size in enumerate(after))
    if many.get(node.output[0]) == wanted:
        return False
    if 0 in after:
        return False  # a dimension of size 0 would be read as "as the input has it"
    target = np.asarray(after, np.int64)
    # 0 says "as the input has it", which every engine takes for the batch; -1 where it is multiplied with more
    target[place] = 0 if place == axis == 0 and before[0] == after[0] else -1
    node.input[1] = editor.add_constant(f"{node.output[0]}.shape", target)
    set_attributes(node, allowzero=None)
    editor.changed()
    return True


def _rewrite_resize(editor: Editor, node: NodeProto, one: dict[str, Shape], many: dict[str, Shape]) -> bool:
    sizes = editor.input_constant(node, 3)
    before, grown = known(one.get(node.input[0])), known(many.get(node.input[0]))
    if sizes is None or before is None or grown is None or len(sizes) != len(before) or before == grown:
        return False
    scales = [_scale(source, int(target)) for source, target in zip(before, sizes, strict=True)]
    node.input[2] = editor.add_constant(f"{node.output[0]}.scales", np.asarray(scales, np.float32))
    del node.input[3:]
    editor.changed()
    return True


def _scale(source: int, target: int) -> np.float32:
    """A float32 scale by which floor(source · scale) is ``target``."""
    scale = np.float32(target / source)
    while math.floor(np.float32(source) * scale) < target:
        scale = np.nextafter(scale, np.float32(np.inf))
    return scale


def _rewrite_expand(editor: Editor, node: NodeProto, one: dict[str, Shape], many: dict[str, Shape]) -> bool:
    target = editor.input_constant(node, 1)
    before, grown = known(one.get(node.input[0])), known(many.get(node.input[0]))
    axis = None if before is None or grown is None else _batch_axis(before, grown)
    if target is None or before is None or axis is None:
        return False
    place = axis + len(target) - len(before)
    if place < 0 or target[place] == 1:
        return False  # 1 broadcasts against any batch
    changed: npt.NDArray[np.int64] = np.array(target, np.int64)
    changed[place] = 1
    node.input[1] = editor.add_constant(f"{node.output[0]}.shape", changed)
    editor.changed()
    return True


_RULES = {"Reshape": _rewrite_reshape, "Resize": _rewrite_resize, "Expand": _rewrite_expand}


def _batch_axis(one: tuple[int, ...], many: tuple[int, ...]) -> int | None:
    """The one axis on which ``many`` is a multiple of ``one``; None where there is none or several."""
    if len(one) != len(many):
        return None
    axes = [axis for axis, (a, b) in enumerate(zip(one, many, strict=True)) if a != b]
    if len(axes) != 1 or many[axes[0]] != _FACTOR * one[axes[0]]:
        return None
    return axes[0]


def _starts_with_batch(
    one: dict[str, ValueInfoProto], many: dict[str, ValueInfoProto], name: str, base: int | None
) -> bool:
    first = known(shape_of(one[name])) if name in one else None
    second = known(shape_of(many[name])) if name in many else None
    if not first or not second or first[0] != base:
        return False
    return _batch_axis(first, second) == 0


def _graft(model: ModelProto, light: ModelProto) -> ModelProto:
    """The model with the nodes of its rewritten skeleton, and the small constants these brought along."""
    grafted = ModelProto()
    grafted.CopyFrom(model)
    del grafted.graph.node[:]
    grafted.graph.node.extend(light.graph.node)
    known = {tensor.name for tensor in model.graph.initializer}
    grafted.graph.initializer.extend(tensor for tensor in light.graph.initializer if tensor.name not in known)
    return grafted
