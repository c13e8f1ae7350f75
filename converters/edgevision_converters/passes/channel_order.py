"""Shuffled channels are computed in the order in which they are read, so that nothing has to shuffle them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto

from edgevision_converters.passes.editor import Editor, attribute
from edgevision_converters.passes.shapes import Shape, known, static_shapes

Index = npt.NDArray[np.int64]
Channel = tuple[str, int]

# one tensor in, one out, channel by channel; further inputs are constants that know no channel
_CHANNELWISE = frozenset({
    "AveragePool", "Clip", "Elu", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "HardSwish", "LeakyRelu",
    "MaxPool", "Relu", "Sigmoid", "Softplus", "Tanh",
})  # fmt: skip
# parts of one tensor that are worth a Slice each; more are one Gather
_MOST_RUNS = 2


def sort_channels(model: ModelProto) -> ModelProto:
    """Give channels the order in which those who read them want them, and replace every shuffle by Slice and Concat.

    ShuffleNetV2 (Ma et al., arXiv 1807.11164, figure 3) passes half of its channels on at each unit and shuffles
    them with the new ones. Each channel is read by one later unit. So the layer that makes channels makes them
    sorted by who reads them: what a unit reads is then a contiguous part of what some earlier units made, and no
    channel is moved more than once. The permutation goes into the weights: of the layer that makes the channels,
    of depthwise layers on the way, and of the layers that read them.

    Requires: static shapes; constants are initializers; shuffles are Gathers on axis 1 (`gather_channels`).
    Ensures: no Gather picks channels of a tensor whose makers' and readers' weights can take the permutation. A
        tensor keeps its name and not always the order of its channels; outputs of the graph keep theirs.
    """
    editor = Editor(model)
    sorter = _Sorter(editor, static_shapes(model))
    readings = sorter.readings()
    if not readings:
        return editor.finish()
    orders = sorter.write(readings)
    _drop_unread(editor, sorter.moves)
    _Permuted(editor, sorter.shapes, orders, sorter.written).follow()
    result = editor.finish()
    return result if _shuffles(result) < _shuffles(model) else model


def _shuffles(model: ModelProto) -> int:
    return sum(node.op_type == "Gather" and attribute(node, "axis", 0) in {1, -3} for node in model.graph.node)


@dataclass(frozen=True)
class _Reading:
    """A tensor that layers read and that shuffles made: the channels that it holds, each in its source."""

    tensor: str
    maker: NodeProto
    channels: tuple[Channel, ...]


class _Sorter:
    """Finds what shuffles feed, and writes it as parts of sorted sources."""

    def __init__(self, editor: Editor, shapes: dict[str, Shape]) -> None:
        self.editor = editor
        self.shapes = shapes
        self.moves = {id(node) for node in editor.nodes if self._moves_channels(node)}
        self.written: set[int] = set()
        self._traces: dict[str, tuple[tuple[Channel, ...], bool]] = {}

    def readings(self) -> list[_Reading]:
        """Every tensor that comes out of a shuffle and goes into a layer, and parts of the same sources, in order.

        One that holds a channel twice is left out.
        """
        shuffled: list[_Reading] = []
        parts: list[_Reading] = []
        for node in self.editor.nodes:
            for output in node.output if id(node) in self.moves else ():
                if not self._stands(output):
                    continue
                channels, through = self._made_of(node, output)
                if len(set(channels)) == len(channels) and (through or node.op_type in {"Slice", "Split"}):
                    (shuffled if through else parts).append(_Reading(output, node, channels))
        # who reads a part of the same sources has a say in their order too
        sources = {source for reading in shuffled for source, _ in reading.channels}
        parts = [reading for reading in parts if sources & {source for source, _ in reading.channels}]
        place = {name: at for at, node in enumerate(self.editor.nodes) for name in node.output}
        return sorted([*shuffled, *parts], key=lambda reading: place[reading.tensor])

    def write(self, readings: list[_Reading]) -> dict[str, Index]:
        """Sort the sources and write each reading anew: tensor → original channel of each one it holds now."""
        orders = self._sorted_sources(readings)
        for reading in readings:
            held: dict[str, list[int]] = {}
            for source, channel in reading.channels:
                held.setdefault(source, []).append(channel)
            parts: list[str] = []
            now: list[Channel] = []
            for source, channels in held.items():
                order = orders.get(source, np.arange(int(self.shapes[source][1] or 0)))
                for run in _runs(np.argsort(order)[channels].tolist()):
                    parts.append(self._part(reading, source, run))
                    now.extend((source, int(order[position])) for position in run)
            number = {channel: index for index, channel in enumerate(reading.channels)}
            orders[reading.tensor] = np.asarray([number[channel] for channel in now], np.int64)
            self._join(reading, parts, orders)
        return orders

    def _sorted_sources(self, readings: list[_Reading]) -> dict[str, Index]:
        users: dict[str, dict[int, list[int]]] = {}
        for index, reading in enumerate(readings):
            for source, channel in reading.channels:
                users.setdefault(source, {}).setdefault(channel, []).append(index)
        own = {reading.tensor for reading in readings}
        orders = {}
        for source, by_channel in users.items():
            shape = known(self.shapes.get(source))
            if shape is None or source in own or self.editor.is_output(source):
                continue
            order = np.asarray(sorted(range(shape[1]), key=lambda channel: by_channel.get(channel, [])), np.int64)
            if _permute_maker(self.editor, source, order):
                orders[source] = order
        return orders

    def _part(self, reading: _Reading, source: str, run: list[int]) -> str:
        """A tensor with the channels ``run`` of ``source``."""
        if len(run) == (self.shapes[source][1] or 0) and run == list(range(len(run))):
            return source
        name = self.editor.unique(f"{reading.tensor}.of.{source}.{run[0]}")
        if run != list(range(run[0], run[-1] + 1)):
            index = self.editor.add_constant(f"{name}.channels", np.asarray(run, np.int64))
            self._insert(reading, self.editor.make_node("Gather", [source, index], [name], name, axis=1))
            return name
        bounds = [self.editor.add_constant(f"{name}.{key}", np.asarray([value], np.int64))
                  for key, value in (("start", run[0]), ("end", run[-1] + 1), ("axis", 1))]  # fmt: skip
        self._insert(reading, self.editor.make_node("Slice", [source, *bounds], [name], name))
        return name

    def _join(self, reading: _Reading, parts: list[str], orders: dict[str, Index]) -> None:
        """Make the reading's tensor of its parts; an output of the graph in its own order of channels."""
        editor = self.editor
        reading.maker.output[list(reading.maker.output).index(reading.tensor)] = editor.unique(
            f"{reading.tensor}.shuffled"
        )
        editor.changed()
        if not editor.is_output(reading.tensor):
            self._insert(
                reading, editor.make_node("Concat", parts, [reading.tensor], f"{reading.tensor}.sorted", axis=1)
            )
            return
        joined = editor.unique(f"{reading.tensor}.sorted")
        self._insert(reading, editor.make_node("Concat", parts, [joined], joined, axis=1))
        index = editor.add_constant(f"{joined}.channels", np.argsort(orders.pop(reading.tensor)))
        self._insert(reading, editor.make_node("Gather", [joined, index], [reading.tensor], f"{joined}.order", axis=1))

    def _insert(self, reading: _Reading, node: NodeProto) -> None:
        self.editor.insert_before(reading.maker, node)
        self.written.add(id(node))

    def _stands(self, tensor: str) -> bool:
        """Whether a tensor is read by something that does not just move its channels on."""
        readers = self.editor.consumers(tensor)
        return self.editor.is_output(tensor) or any(id(node) not in self.moves for node in readers)

    def _trace(self, tensor: str) -> tuple[tuple[Channel, ...], bool]:
        """The channels of a tensor, each in the tensor that stands for itself, and whether a Gather lies between."""
        if tensor not in self._traces:
            maker = self.editor.producer(tensor)
            if maker is None or id(maker) not in self.moves or self._stands(tensor):
                self._traces[tensor] = tuple((tensor, at) for at in range(self.shapes[tensor][1] or 0)), False
            else:
                self._traces[tensor] = self._made_of(maker, tensor)
        return self._traces[tensor]

    def _made_of(self, node: NodeProto, output: str) -> tuple[tuple[Channel, ...], bool]:
        if node.op_type == "Concat":
            traces = [self._trace(str(name)) for name in node.input]
            return tuple(c for channels, _ in traces for c in channels), any(shuffled for _, shuffled in traces)
        channels, shuffled = self._trace(str(node.input[0]))
        index = self._index(node, output, len(channels))
        return tuple(channels[at] for at in index), shuffled or node.op_type == "Gather"

    def _index(self, node: NodeProto, output: str, count: int) -> list[int]:
        if node.op_type == "Gather":
            return [int(at) % count for at in np.asarray(self.editor.input_constant(node, 1))]
        if node.op_type == "Slice":
            start, end = (np.asarray(self.editor.input_constant(node, at)) for at in (1, 2))
            return list(range(count))[int(start[0]) : int(end[0])]
        sizes = [int(self.shapes[name][1] or 0) for name in node.output]
        first = sum(sizes[: list(node.output).index(output)])
        return list(range(first, first + int(self.shapes[output][1] or 0)))

    def _moves_channels(self, node: NodeProto) -> bool:
        shapes = [known(self.shapes.get(name)) for name in [node.input[0], *node.output] if name] if node.input else []
        if not shapes or any(shape is None or len(shape) != 4 for shape in shapes):
            return False
        if node.op_type in {"Concat", "Split"}:
            constants = node.op_type == "Concat" and any(self.editor.constant(name) is not None for name in node.input)
            return attribute(node, "axis", 0) in {1, -3} and not constants
        if node.op_type == "Gather":
            index = self.editor.input_constant(node, 1)
            return attribute(node, "axis", 0) in {1, -3} and index is not None and index.ndim == 1
        if node.op_type != "Slice":
            return False
        axes, steps = self.editor.input_constant(node, 3), self.editor.input_constant(node, 4)
        ends = self.editor.input_constant(node, 2)
        stepped = len(node.input) > 4 and (steps is None or bool(np.any(steps != 1)))
        return axes is not None and ends is not None and axes.tolist() in ([1], [-3]) and not stepped


def _runs(positions: list[int]) -> list[list[int]]:
    """Numbers, sorted, as runs without a gap; as they are, in one piece, where that would be too many."""
    runs: list[list[int]] = []
    for position in sorted(positions):
        if runs and runs[-1][-1] + 1 == position:
            runs[-1].append(position)
        else:
            runs.append([position])
    return runs if len(runs) <= _MOST_RUNS else [positions]


def _permute_maker(editor: Editor, tensor: str, order: Index) -> bool:
    """Let the layers that make ``tensor`` make its channels in ``order``; False where their weights cannot."""
    layers: list[NodeProto] = []
    name = tensor
    while True:
        maker = editor.producer(name)
        if maker is None or (name != tensor and editor.only_consumer(name) is None):
            return False
        if maker.op_type == "Conv":
            weight = editor.input_constant(maker, 1)
            if weight is None or (len(maker.input) > 2 and editor.input_constant(maker, 2) is None):
                return False
            layers.append(maker)
            if attribute(maker, "group", 1) == 1:
                break
            if not _is_depthwise(maker, weight.shape):
                return False
        elif maker.op_type not in _CHANNELWISE:
            return False
        name = str(maker.input[0])
    for layer in layers:
        _permute_outputs(editor, layer, order)
    return True


def _permute_outputs(editor: Editor, layer: NodeProto, order: Index) -> None:
    for position in range(1, len(layer.input)):
        value = editor.input_constant(layer, position)
        if value is not None:
            editor.replace_constant(layer, position, value[order])


def _is_depthwise(node: NodeProto, weight: tuple[int, ...]) -> bool:
    return bool(attribute(node, "group", 1) == weight[0] and weight[1] == 1)


def _drop_unread(editor: Editor, moves: set[int]) -> None:
    """Take out the shuffles that nobody reads any more: they would be followed for nothing."""
    while True:
        unread = [
            node
            for node in editor.nodes
            if id(node) in moves and not any(editor.consumers(name) or editor.is_output(name) for name in node.output)
        ]
        if not unread:
            return
        editor.remove(unread)


class _Permuted:
    """Follows permuted channels down to layers whose weights take the permutation."""

    def __init__(self, editor: Editor, shapes: dict[str, Shape], orders: dict[str, Index], written: set[int]) -> None:
        self.editor = editor
        self.shapes = shapes
        self.orders = orders
        self.written = written
        self._restored: dict[str, str] = {}

    def follow(self) -> None:
        """Permute the weights of every reader, or give it the channels in their own order by a Gather."""
        for node in list(self.editor.nodes):
            if id(node) in self.written:
                continue
            if any(name in self.orders for name in node.input) and not self._absorb(node):
                for position, name in enumerate(node.input):
                    if name in self.orders:
                        node.input[position] = self._restore(str(name), node)
                        self.editor.changed()

    def _absorb(self, node: NodeProto) -> bool:
        order = self.orders.get(str(node.input[0]))
        output = str(node.output[0])
        if node.op_type == "Conv" and order is not None and self._permute_convolution(node, order):
            return True
        if self.editor.is_output(output) or len(node.output) != 1:
            return False
        if node.op_type in _CHANNELWISE and order is not None:
            self.orders[output] = order
            return True
        if node.op_type == "Resize" and order is not None and _over_space(self.editor, node):
            self.orders[output] = order
            return True
        return node.op_type == "Concat" and self._concatenate(node, output)

    def _permute_convolution(self, node: NodeProto, order: Index) -> bool:
        weight = self.editor.input_constant(node, 1)
        output = str(node.output[0])
        if weight is None:
            return False
        if attribute(node, "group", 1) == 1:
            self.editor.replace_constant(node, 1, weight[:, order])
            return True
        constant_bias = len(node.input) < 3 or self.editor.input_constant(node, 2) is not None
        if not _is_depthwise(node, weight.shape) or not constant_bias or self.editor.is_output(output):
            return False
        _permute_outputs(self.editor, node, order)
        self.orders[output] = order
        return True

    def _concatenate(self, node: NodeProto, output: str) -> bool:
        sizes = [(known(self.shapes.get(str(name))) or (0, 0))[1] for name in node.input]
        if attribute(node, "axis") not in {1, -3} or not all(sizes) or len(self.shapes.get(output, ())) != 4:
            return False
        parts, first = [], 0
        for name, size in zip(node.input, sizes, strict=True):
            parts.append(first + self.orders.get(str(name), np.arange(size)))
            first += size
        self.orders[output] = np.concatenate(parts)
        return True

    def _restore(self, tensor: str, reader: NodeProto) -> str:
        if tensor not in self._restored:
            name = self.editor.unique(f"{tensor}.restored")
            index = self.editor.add_constant(f"{name}.channels", np.argsort(self.orders[tensor]))
            self.editor.insert_before(reader, self.editor.make_node("Gather", [tensor, index], [name], name, axis=1))
            self._restored[tensor] = name
        return self._restored[tensor]


def _over_space(editor: Editor, node: NodeProto) -> bool:
    """Whether a Resize leaves the channels alone."""
    scales, sizes = editor.input_constant(node, 2), editor.input_constant(node, 3)
    if attribute(node, "axes") is not None or attribute(node, "coordinate_transformation_mode") == "tf_crop_and_resize":
        return False
    return sizes is None and scales is not None and len(scales) == 4 and bool(scales[1] == 1)
