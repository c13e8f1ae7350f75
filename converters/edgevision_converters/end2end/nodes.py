"""`Nodes`: writes nodes behind a model, one call each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevision_converters.passes.editor import Editor

_PREFIX = "detections"
# axes count from the end, as ONNX's do; a slice up to here goes to the end
_END = np.iinfo(np.int64).max


class Nodes:
    """Adds nodes to an `Editor`'s model and names what they make.

    Args:
        editor: of the model that is added to.
        shapes: of the network's outputs, by name: ``[B, …]``, where B may be anything.
    """

    def __init__(self, editor: Editor, shapes: Mapping[str, Sequence[int | None]]) -> None:
        self.editor = editor
        # a free batch stands as 1: nothing here looks at it
        self.shapes = {name: tuple(int(size or 1) for size in shape) for name, shape in shapes.items()}

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output; the output's name."""
        return self.ops(kind, *inputs, outputs=1, **attributes)[0]

    def ops(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """A node with several outputs; their names."""
        names = [self.editor.unique(f"{_PREFIX}_{kind.lower()}") for _ in range(outputs)]
        self.editor.nodes.append(self.editor.make_node(kind, inputs, names, names[0], **attributes))
        return names

    def floats(self, values: npt.ArrayLike) -> str:
        """A float32 constant."""
        return self.editor.add_constant(f"{_PREFIX}_floats", np.asarray(values, np.float32))

    def ints(self, *values: int) -> str:
        """An int64 constant ``[len(values)]``."""
        return self.editor.add_constant(f"{_PREFIX}_ints", np.asarray(values, np.int64))

    def reshape(self, name: str, *shape: int) -> str:
        """``name`` in another shape; 0 keeps a dimension, −1 is what is left."""
        return self.op("Reshape", name, self.ints(*shape))

    def columns(self, name: str, start: int, stop: int | None = None) -> str:
        """``name[..., start:stop]``."""
        end = _END if stop is None else stop
        return self.op("Slice", name, self.ints(start), self.ints(end), self.ints(-1))

    def concat(self, names: Sequence[str], axis: int) -> str:
        """Tensors behind each other; one alone as it is."""
        return names[0] if len(names) == 1 else self.op("Concat", *names, axis=axis)

    def best(self, name: str, count: int, *, least: bool = False) -> tuple[str, str]:
        """The ``count`` greatest along the last axis, greatest first, and their int64 places; or the ``least`` so."""
        values, places = self.ops("TopK", name, self.ints(count), outputs=2, axis=-1, largest=int(not least))
        return values, places

    def at(self, name: str, places: str) -> str:
        """Rows ``[B, K, …]`` of ``name`` ``[B, N, …]`` at ``places`` ``[B, K]``."""
        return self.op("GatherND", name, self.op("Unsqueeze", places, self.ints(-1)), batch_dims=1)

    def rows(self, name: str, anchors: int = 1) -> str:
        """A map ``[B, A·V, h, w]`` as ``[B, A·h·w, V]``: the anchor is the outer of the indices, then the row."""
        values = self.shapes[name][1] // anchors
        split = self.reshape(name, 0, anchors, values, -1)
        return self.reshape(self.op("Transpose", split, perm=[0, 1, 3, 2]), 0, -1, values)

    def around(self, centers: str, sides: str) -> str:
        """Centres and sides ``[B, K, 2]`` as corners ``[B, K, 4]``."""
        half = self.op("Mul", sides, self.floats(0.5))
        return self.concat([self.op("Sub", centers, half), self.op("Add", centers, half)], -1)
