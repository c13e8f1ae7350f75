"""What moves whole channels about, in however many steps, is one `Gather` of channels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto

from edgevision_converters.passes.editor import Editor, attribute
from edgevision_converters.passes.shapes import Shape, known, static_shapes

Index = npt.NDArray[np.int64]

_MOVES = frozenset({"Reshape", "Transpose", "Gather", "Slice", "Split", "Squeeze", "Unsqueeze"})
# a shuffle with the split after it takes four ops, five where its exporter writes shapes out
_LONGEST = 6
# larger maps than this are no channel shuffle that is worth its check
_LARGEST = 1 << 24


def gather_channels(model: ModelProto) -> ModelProto:
    """Turn Reshape → Transpose → Reshape, and Gather, Slice or Split after it, into a `Gather` on axis 1.

    ShuffleNet's channel shuffle (Zhang et al., arXiv 1707.01083, section 3.1; Ma et al., arXiv 1807.11164, figure 3)
    is exported as such a chain, through three to five dimensions. Whether a chain only moves channels is found by
    running it on the numbers of its elements.

    Requires: static shapes; constants are initializers.
    Ensures: no chain with a Transpose between two maps of equal height and width picks whole channels. What the
        chain made keeps its name.
    """
    editor = Editor(model)
    shapes = static_shapes(model)
    for node in list(editor.nodes):
        if node.op_type not in _MOVES:
            continue
        for position, output in enumerate(node.output):
            found = _picked(editor, shapes, node, position)
            if found is not None:
                source, channels = found
                index = editor.add_constant(f"{output}.channels", channels)
                editor.insert_before(
                    node, editor.make_node("Gather", [source, index], [output], f"{node.name}.channels", axis=1)
                )
                node.output[position] = editor.unique(f"{output}.unused")
                editor.changed()
    return editor.finish()


def _picked(editor: Editor, shapes: dict[str, Shape], node: NodeProto, position: int) -> tuple[str, Index] | None:
    """The tensor, and the numbers of its channels, that one output of ``node`` holds; None where it is otherwise."""
    result = known(shapes.get(node.output[position]))
    if result is None or len(result) != 4:
        return None
    for source, chain in _chains(editor, node, position):
        shape = known(shapes.get(source))
        if shape is None or len(shape) != 4 or (shape[0], shape[2:]) != (result[0], result[2:]):
            continue
        if not any(step.op_type == "Transpose" for step, _ in chain) or np.prod(shape) > _LARGEST:
            continue
        moved = _run(editor, shapes, chain, np.arange(np.prod(shape), dtype=np.int64).reshape(shape))
        if moved is None or moved.shape != result:
            continue
        area = result[2] * result[3]
        channels: Index = moved[0, :, 0, 0] // area
        if np.array_equal(channels, np.arange(shape[1])):
            continue  # nothing is moved in the end: `remove_noops` and `merge_transposes` know these
        if np.array_equal(moved, np.arange(np.prod(shape)).reshape(shape)[:, channels]):
            return source, channels
    return None


def _chains(editor: Editor, node: NodeProto, position: int) -> Iterator[tuple[str, list[tuple[NodeProto, int]]]]:
    """Tensors that ``node`` gets its values from, and the steps (node, number of its output) from there, in order."""
    chain = [(node, position)]
    while len(chain) <= _LONGEST:
        source = str(chain[0][0].input[0])
        yield source, chain
        maker = editor.producer(source)
        if maker is None or maker.op_type not in _MOVES:
            return
        chain = [(maker, list(maker.output).index(source)), *chain]


def _run(editor: Editor, shapes: dict[str, Shape], chain: list[tuple[NodeProto, int]], values: Index) -> Index | None:
    """What the steps make of ``values``; None where one of them has something else than constants beside its data."""
    for node, position in chain:
        if any(name and editor.constant(name) is None for name in node.input[1:]):
            return None
        if node.op_type == "Transpose":
            values = values.transpose(attribute(node, "perm"))
        elif node.op_type == "Gather":
            values = np.take(values, np.asarray(editor.input_constant(node, 1)), axis=attribute(node, "axis", 0))
        elif node.op_type == "Slice":
            values = _slice(editor, node, values)
        elif node.op_type == "Split":
            values = _split(shapes, node, position, values)
        else:
            shape = known(shapes.get(node.output[0]))
            if shape is None:
                return None
            values = values.reshape(shape)
    return values


def _slice(editor: Editor, node: NodeProto, values: Index) -> Index:
    starts, ends, axes, steps = (editor.input_constant(node, index) for index in range(1, 5))
    assert starts is not None
    assert ends is not None
    picked = [slice(None)] * values.ndim
    for at in range(len(starts)):
        step = 1 if steps is None else int(steps[at])
        end = int(ends[at])
        # an end before the first element is what runs backwards to it
        stop = None if step < 0 and end < -values.ndim - max(values.shape) else end
        picked[at if axes is None else int(axes[at])] = slice(int(starts[at]), stop, step)
    return values[tuple(picked)]


def _split(shapes: dict[str, Shape], node: NodeProto, position: int, values: Index) -> Index:
    axis = attribute(node, "axis", 0)
    sizes = [int(shapes[name][axis] or 0) for name in node.output]
    start = sum(sizes[:position])
    return np.take(values, np.arange(start, start + sizes[position]), axis=axis)
