"""What is read of every activation while a picture runs: maps are summed up inside the session, not handed over."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgevision.graph import Graph

if TYPE_CHECKING:
    from onnx import ModelProto

# values of a map whose extremes are found quicker within the graph, and of one that is worth a grid
_MAP = 1 << 13
_LARGE_MAP = 1 << 16
# sides of the grid of pixels that is read of a map, at least
_LEAST_SIDE = 7
# a coarse grid begins so far from the border, where padding makes values unlike the others
_INSET = 2
# in the place of an output: nothing is below 0
_ZERO = "0"


class Reading(NamedTuple):
    """What was read of one tensor ``[B, C, …]`` in a run.

    Attributes:
        name: the tensor.
        values: all of it or, of a large map, a regular grid of its pixels, float32 ``[B, C, …]``.
        lows: least value of every channel in every picture, float32 ``[B, C]``; 0 for a map behind a Relu, or a Clip
            at 0 or above, since every range holds 0 anyway.
        highs: greatest one, float32 ``[B, C]``.
    """

    name: str
    values: npt.NDArray[np.float32]
    lows: npt.NDArray[np.float32]
    highs: npt.NDArray[np.float32]


class Probe:
    """A graph that tells about its tensors in the place of its outputs.

    Extremes of maps are found within the graph, and of large ones a depthwise convolution with a stride, whose kernel
    is zeros and one 1, picks a grid of pixels, all in the blocked layout of the convolutions around. To hand a map over
    would reorder and copy it first, and then numpy would fetch it from memory for each figure.

    Args:
        graph: the canonical graph.
        names: tensors to read, each of two dimensions or more.
        values: about how many values of a large map to read in each picture.
        pixels: about how many pixels, in the place of ``values``; borders are among them.

    Attributes:
        model: the graph, serialized; those of `outputs` are among its outputs.
        outputs: names of what to fetch.
    """

    def __init__(self, graph: Graph, names: Iterable[str], *, values: int = 0, pixels: int = 0) -> None:
        from onnx import ModelProto, TensorProto, helper

        # what is added to the graph: two serialized messages, one behind the other, are read as both merged
        model = ModelProto()
        self._input = graph.input_name
        # tensor → the outputs that tell its values, least and greatest ones; None where the values tell these
        self._told: dict[str, tuple[str, str | None, str | None]] = {}
        for name in names:
            size = 0 if name == self._input else _map_size(graph.shapes[name])
            high = _add(model, "GlobalMaxPool", [name], f"{name}|high") if size >= _MAP else None
            low = _add_least(model, graph, name) if size >= _MAP else None
            grid = _add_grid(model, graph.shapes[name], name, values, pixels) if size >= _LARGE_MAP else name
            self._told[name] = (grid, low, high)
        # a graph input cannot be an output of its own
        self.outputs = sorted({told for tells in self._told.values() for told in tells if told} - {self._input, _ZERO})
        model.graph.output.extend(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
            for name in self.outputs
            if name not in graph.output_names
        )
        self.model: bytes = graph.to_bytes() + model.SerializeToString()

    def read(self, batch: npt.NDArray[np.float32], outputs: Iterable[npt.NDArray[Any]]) -> Iterator[Reading]:
        """What a run says, tensor by tensor in the order they were named.

        Args:
            batch: what was run, float32 ``[B, C, H, W]``.
            outputs: what the session gave for `outputs`.
        """
        found: Mapping[str, npt.NDArray[Any]] = {
            **dict(zip(self.outputs, outputs, strict=True)),
            self._input: batch,
        }
        for name, (source, low, high) in self._told.items():
            values = found[source]
            shape = values.shape[:2]
            highs = _extremes(np.max, values) if high is None else found[high].reshape(shape)
            if low is None:
                lows = _extremes(np.min, values)
            else:
                lows = np.zeros(shape, np.float32) if low == _ZERO else found[low].reshape(shape)
            yield Reading(name, values, lows, highs)


def _extremes(function: Any, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.asarray(function(values.reshape(*values.shape[:2], -1), axis=2), np.float32)


def _map_size(shape: tuple[int | None, ...]) -> int:
    """Values of a map ``[B, C, H, W]`` in each picture; 0 for what is no map."""
    return math.prod(side or 0 for side in shape[1:]) if len(shape) == 4 else 0


def _add(model: ModelProto, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
    from onnx import helper

    model.graph.node.append(helper.make_node(op, inputs, [output], output, **attributes))
    return output


def _add_constant(model: ModelProto, name: str, value: npt.NDArray[Any]) -> str:
    from onnx import numpy_helper

    model.graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def _add_least(model: ModelProto, graph: Graph, name: str) -> str:
    """Name of the output that tells the least values of a map, or `_ZERO`."""
    if _is_positive(graph, name):
        return _ZERO
    low, axes = f"{name}|low", [2, 3]
    if max(entry.version for entry in graph.model.opset_import if entry.domain in {"", "ai.onnx"}) < 18:
        return _add(model, "ReduceMin", [name], low, axes=axes)
    return _add(model, "ReduceMin", [name, _add_constant(model, f"{name}|axes", np.asarray(axes, np.int64))], low)


def _add_grid(model: ModelProto, shape: tuple[int | None, ...], name: str, values: int, pixels: int) -> str:
    """Name of the output that tells about so many ``values``, or ``pixels``, of a map."""
    _, channels, height, width = (side or 1 for side in shape)
    share = height * width / (pixels or max(values / channels, 1.0))
    stride = max(1, min(math.ceil(math.sqrt(share)), min(height, width) // _LEAST_SIDE))
    # every other pixel holds as large a share of the border as all of them; a coarser grid would hold more
    inset = 0 if stride < 3 or pixels else min(_INSET, (stride - 1) // 2)
    kernel = np.zeros((channels, 1, inset + 1, inset + 1), np.float32)
    kernel[:, :, -1, -1] = 1.0
    weight = _add_constant(model, f"{name}|pick", kernel)
    return _add(model, "Conv", [name, weight], f"{name}|grid", group=channels, strides=[stride, stride])


def _is_positive(graph: Graph, name: str) -> bool:
    """Whether a Relu, or a Clip at 0 or above, makes the tensor."""
    producer = graph.producer.get(name)
    # whether an output of the network moves at all is asked of its least value
    if name in graph.output_names or producer is None or producer.op_type not in {"Relu", "Clip"}:
        return False
    if producer.op_type == "Relu":
        return True
    return len(producer.input) > 1 and bool(np.all(graph.initializers.get(producer.input[1], np.float32(-1.0)) >= 0))
