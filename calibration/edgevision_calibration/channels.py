"""Which channels may be rescaled together without changing the network's function.

A factor per channel can be moved from the weights that make a channel to the weights that read it, as long as
everything between is positively homogeneous per channel: ReLU, max and average pooling, addition, concatenation,
flattening of a 1×1 map. (A Clip is not, in general; how far it lets factors through is for the reader to judge.)
`channel_groups` follows these, forks and concatenations included, and says for every group of tied channels who
makes it and who reads it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgevision.graph import Graph, attributes
from edgevision.union_find import UnionFind

if TYPE_CHECKING:
    from onnx import NodeProto

# one tensor in, one out, channel by channel
_CHANNELWISE = frozenset(
    {"Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Identity", "LeakyRelu", "Resize"}
)
# of these, the ones that treat negative values otherwise than positive ones
_ONE_SIDED = frozenset({"Relu", "Clip", "MaxPool", "GlobalMaxPool", "LeakyRelu"})


@dataclass
class ChannelGroup:
    """Channels that must share their factors: one factor per index of the group.

    Attributes:
        size: number of independent factors.
        tensors: tensor name → group index of each of its channels, int64 ``[C]`` (−1: the channel is not free).
        producers: nodes whose output channels carry the factors.
        consumers: nodes whose input channels undo them.
        signed: bool ``[size]``, whether a channel's factor may be negative too: no Relu, Clip or max pooling
            reads it.
    """

    size: int
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    producers: list[NodeProto] = field(default_factory=list)
    consumers: list[NodeProto] = field(default_factory=list)
    signed: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))


def channel_groups(graph: Graph) -> list[ChannelGroup]:
    """All groups of channels that may be rescaled, in topological order of their first tensor."""
    ties = _Ties(graph)
    for node in graph.nodes:
        ties.follow(node)
    return ties.groups()


class _Ties:
    """Which channels share a factor: every channel of every tensor has a slot, and tied slots are united."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.finder = UnionFind()
        self.slots: dict[str, np.ndarray] = {}
        self.pinned: set[int] = set()
        self.one_sided: set[int] = set()
        self.producers: dict[str, NodeProto] = {}
        self.consumers: dict[str, list[NodeProto]] = {}
        for name in [graph.input_name, *(name for node in graph.nodes for name in node.output)]:
            shape = graph.shapes.get(name, ())
            if len(shape) in {2, 4} and shape[1] is not None:
                first = self.finder.new(int(shape[1]))
                self.slots[name] = np.arange(first, first + int(shape[1]))
        for name in [graph.input_name, *graph.output_names]:
            self.pinned.update(self._slots_of(name))

    def _slots_of(self, name: str) -> list[int]:
        return [int(slot) for slot in self.slots.get(name, ())]

    def follow(self, node: NodeProto) -> None:
        """Tie the channels around one node, or pin them where it lets no factor through."""
        if _is_linear(self.graph, node):
            self.producers[node.output[0]] = node
            self.consumers.setdefault(node.input[0], []).append(node)
            return
        activations = [name for name in node.input if name and name not in self.graph.initializers]
        inputs = [self.slots[name] for name in activations if name in self.slots]
        if len(inputs) == len(activations) and len(node.output) == 1 and node.output[0] in self.slots:
            output = self.slots[node.output[0]]
            sources = self._sources(node, inputs)
            if sources and all(len(source) == len(output) for source in sources):
                for source in sources:
                    for left, right in zip(output.tolist(), source.tolist(), strict=True):
                        self.finder.union(left, right)
                if node.op_type in _ONE_SIDED:
                    self.one_sided.update(self._slots_of(node.output[0]))
                return
        for name in [*activations, *node.output]:
            self.pinned.update(self._slots_of(name))

    def _sources(self, node: NodeProto, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """Slots that must each equal the output's; none where the node lets no factor through."""
        if len(inputs) == 1 and _maps_channels(self.graph, node):
            return inputs
        if node.op_type == "Add" and len(inputs) == 2 and len({self._rank(name) for name in node.input}) == 1:
            return inputs
        if node.op_type == "Concat" and len(inputs) == len(node.input) and attributes(node).get("axis") in {1, -3}:
            return [np.concatenate(inputs)] if self._rank(node.output[0]) == 4 else []
        picked = _picked_channels(self.graph, node, len(inputs[0])) if len(inputs) == 1 else None
        return [] if picked is None else [inputs[0][picked]]

    def _rank(self, name: str) -> int:
        return len(self.graph.shapes.get(name, ()))

    def groups(self) -> list[ChannelGroup]:
        """Gather tied channels into groups: tensors that share a channel share a group."""
        roots = {
            name: np.asarray([self.finder.find(slot) for slot in self._slots_of(name)], np.int64) for name in self.slots
        }
        pinned = {self.finder.find(slot) for slot in self.pinned}
        one_sided = {self.finder.find(slot) for slot in self.one_sided}
        groups = []
        for names in _families(roots):
            free = sorted({root for name in names for root in roots[name].tolist()} - pinned)
            if not free:
                continue
            index = {root: number for number, root in enumerate(free)}
            group = ChannelGroup(len(free), signed=np.asarray([root not in one_sided for root in free]))
            for name in names:
                group.tensors[name] = np.asarray([index.get(root, -1) for root in roots[name].tolist()], np.int64)
                if name in self.producers:
                    group.producers.append(self.producers[name])
                group.consumers.extend(self.consumers.get(name, []))
            groups.append(group)
        return groups


def _families(roots: dict[str, np.ndarray]) -> list[list[str]]:
    """Names of tensors that have a channel in common, directly or through others."""
    names = list(roots)
    finder = UnionFind()
    finder.new(len(names))
    owner: dict[int, int] = {}
    for position, name in enumerate(names):
        # channels mostly share their owner: one union for all of them
        for other in {owner.setdefault(root, position) for root in roots[name].tolist()}:
            finder.union(other, position)
    members: dict[int, list[str]] = {}
    for position, name in enumerate(names):
        members.setdefault(finder.find(position), []).append(name)
    return list(members.values())


def _is_linear(graph: Graph, node: NodeProto) -> bool:
    """A Conv or Gemm whose weights are constants of its own."""
    if node.op_type not in {"Conv", "Gemm"} or any(name not in graph.initializers for name in node.input[1:] if name):
        return False
    if any(len(graph.consumers.get(name, [])) != 1 for name in node.input[1:] if name):
        return False
    if node.op_type == "Gemm":
        values = attributes(node)
        return not values.get("transA", 0) and values.get("alpha", 1.0) == values.get("beta", 1.0) == 1.0
    return True


def _maps_channels(graph: Graph, node: NodeProto) -> bool:
    """Whether each output channel is a homogeneous function of the one input channel of the same number."""
    if node.op_type == "ReduceMean":
        return _over_space(graph, node)
    if node.op_type in {"Flatten", "Reshape", "Squeeze"}:
        return _flattens_pixel(graph, node)
    return node.op_type in _CHANNELWISE


def _picked_channels(graph: Graph, node: NodeProto, count: int) -> np.ndarray | None:
    """Which of ``count`` channels a Slice or Gather on axis 1 of a map passes on; None for anything else."""
    if len(graph.shapes.get(node.output[0], ())) != 4 or not all(name in graph.initializers for name in node.input[1:]):
        return None
    constants = [graph.initializers[name] for name in node.input[1:]]
    if node.op_type == "Gather" and attributes(node).get("axis", 0) == 1 and constants[0].ndim == 1:
        return np.asarray(np.arange(count)[constants[0]])
    if node.op_type == "Slice" and len(constants) >= 3 and constants[2].tolist() == [1]:
        step = int(constants[3][0]) if len(constants) > 3 else 1
        return np.arange(count)[int(constants[0][0]) : int(constants[1][0]) : step]
    return None


def _over_space(graph: Graph, node: NodeProto) -> bool:
    axes = attributes(node).get("axes")
    if axes is None and len(node.input) > 1 and node.input[1] in graph.initializers:
        axes = graph.initializers[node.input[1]].tolist()
    return axes is not None and {axis % 4 for axis in axes} <= {2, 3}


def _flattens_pixel(graph: Graph, node: NodeProto) -> bool:
    before, after = graph.shapes[node.input[0]], graph.shapes[node.output[0]]
    return len(before) == 4 and before[2:] == (1, 1) and after[1] == before[1]
