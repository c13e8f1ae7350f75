"""Positions on layers' axes that are tied to each other, and the groups that follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from edgevision.models.channels import CONVOLUTIONS, channel_counts
from edgevision.pruning.groups import Axis, ChannelGroup, IntArray, KeptGroup, Member
from edgevision.union_find import UnionFind


@dataclass(frozen=True)
class Slot:
    """One axis of one layer: ``size`` positions that are numbered from ``start`` among all positions."""

    name: str
    axis: Axis
    start: int
    size: int
    dimension: int = -1


class Ties:
    """Collects what goes together; `resolve` makes groups of it.

    Args:
        modules: the network's modules by name.
        tensors: its parameters and buffers that belong to no layer, by name.
    """

    def __init__(self, modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> None:
        self._names = {id(module): name for name, module in reversed(list(modules.items()))}
        self._tensor_names = {id(tensor): name for name, tensor in tensors.items()}
        self._order = {name: index for index, name in enumerate([*modules, *tensors])}
        self._slots: dict[tuple[str, Axis, int], Slot] = {}
        self._finder = UnionFind()
        self._tied: set[int] = set()
        self._reasons: dict[int, str] = {}
        self._ops: dict[str, set[str]] = {}
        self._hidden: set[str] = set()
        self.layers: set[str] = set()

    def name_of(self, module: nn.Module) -> str:
        """Name of a module in the network."""
        return self._names[id(module)]

    def out_slot(self, module: nn.Module) -> Slot:
        """The channels a layer makes."""
        counts = channel_counts(module)
        assert counts is not None
        channels_in, channels_out, groups = counts
        name = self.name_of(module)
        self.layers.add(name)
        convolution = isinstance(module, CONVOLUTIONS)
        if not (convolution or isinstance(module, nn.Linear)) or 1 < groups == channels_in == channels_out:
            return self._slot(name, "both", channels_out)
        known = (name, "out", -1) in self._slots
        slot = self._slot(name, "out", channels_out)
        if convolution and groups > 1 and not known:
            if groups == channels_in:
                self._tie_multiplier(slot, self.in_slot(module))
            else:
                self._tie_groups(slot, groups)
        return slot

    def in_slot(self, module: nn.Module) -> Slot:
        """The channels a layer reads."""
        counts = channel_counts(module)
        assert counts is not None
        channels_in, _, groups = counts
        name = self.name_of(module)
        self.layers.add(name)
        known = (name, "in", -1) in self._slots
        slot = self._slot(name, "in", channels_in)
        if groups > 1 and groups != channels_in and not known:
            self._tie_groups(slot, groups)
        elif groups > 1 and not known:
            self.out_slot(module)
        return slot

    def tensor_slot(self, tensor: Tensor, dimension: int) -> Slot:
        """One dimension of a parameter or buffer that belongs to no layer."""
        dimension %= tensor.dim()
        return self._slot(self._tensor_names[id(tensor)], "tensor", tensor.shape[dimension], dimension)

    def tie(self, a: Slot, a_positions: IntArray, b: Slot, b_positions: IntArray) -> None:
        """Position by position, what is on the two axes goes together."""
        for i, j in zip((a.start + a_positions).tolist(), (b.start + b_positions).tolist(), strict=True):
            self._tied |= {i, j}
            self._finder.union(i, j)

    def refuse(self, slot: Slot, positions: IntArray, reason: str) -> None:
        """Keep what goes with these positions."""
        for position in (slot.start + positions).tolist():
            self._reasons.setdefault(position, reason)

    def hide(self, module: nn.Module) -> None:
        """Keep what a layer ties, and leave the layer itself out of the groups: the network does not have it."""
        self._hidden.add(self.name_of(module))

    def passes(self, root: Slot, op: str) -> None:
        """Remember an op that a layer's channels go through."""
        self._ops.setdefault(root.name, set()).add(op)

    def ops_of(self, layer: str) -> set[str]:
        """Ops that the layer's channels go through."""
        return self._ops.get(layer, set())

    def covered(self, slot: Slot) -> bool:
        """Whether every position of an axis has been followed already."""
        return all(position in self._tied for position in range(slot.start, slot.start + slot.size))

    def resolve(self) -> tuple[list[ChannelGroup], list[KeptGroup]]:
        """Channels with the same members make a group."""
        tied_sets: dict[int, dict[Slot, list[int]]] = {}
        shown = [slot for slot in self._slots.values() if slot.name not in self._hidden]
        for slot in sorted(shown, key=lambda slot: (self._order[slot.name], slot.axis)):
            for position in range(slot.size):
                tied_sets.setdefault(self._finder.find(slot.start + position), {}).setdefault(slot, []).append(position)
        reasons = {self._finder.find(position): reason for position, reason in self._reasons.items()}
        families: dict[tuple[object, ...], list[dict[Slot, list[int]]]] = {}
        for root, places in tied_sets.items():
            if any(slot.axis == "out" for slot in places):
                signature = tuple((slot, len(positions)) for slot, positions in places.items())
                families.setdefault((reasons.get(root), *signature), []).append(places)
        groups: list[ChannelGroup] = []
        kept: list[KeptGroup] = []
        for (reason, *_), family in families.items():
            makers = tuple(slot.name for slot in family[0] if slot.axis == "out")
            name = _name(family)
            if reason is None and not any(slot.axis == "in" for slot in family[0]):
                reason = "no layer reads them"
            if reason is None and len(family) < 2:
                reason = "they are one channel, or all tied to each other"
            if reason is None:
                groups.append(ChannelGroup(name, len(family), _members(family)))
            else:
                kept.append(KeptGroup(name, makers, str(reason)))
        return groups, kept

    def _slot(self, name: str, axis: Axis, size: int, dimension: int = -1) -> Slot:
        key = (name, axis, dimension)
        if key not in self._slots:
            self._slots[key] = Slot(name, axis, self._finder.new(size), size, dimension)
        return self._slots[key]

    def _tie_groups(self, slot: Slot, groups: int) -> None:
        """A grouped layer can only lose the same channel of every group."""
        within = slot.size // groups
        for position in range(within, slot.size):
            self._finder.union(slot.start + position % within, slot.start + position)

    def _tie_multiplier(self, out: Slot, into: Slot) -> None:
        """A depthwise layer with several outputs per channel loses a channel with all its outputs."""
        multiplier = out.size // into.size
        for position in range(out.size):
            self._finder.union(into.start + position // multiplier, out.start + position)


def _name(family: list[dict[Slot, list[int]]]) -> str:
    maker = next(slot for slot in family[0] if slot.axis == "out")
    positions = sorted(position for places in family for position in places[maker])
    if len(positions) == maker.size:
        return maker.name
    return f"{maker.name}[{positions[0]}:{positions[-1] + 1}]"


def _members(family: list[dict[Slot, list[int]]]) -> tuple[Member, ...]:
    # channels in the order of the first layer that makes them, so that cutting never permutes
    maker = next(slot for slot in family[0] if slot.axis == "out")
    ordered = sorted(family, key=lambda places: places[maker][0])
    return tuple(
        Member(slot.name, slot.axis, np.asarray([places[slot] for places in ordered], np.int64), slot.dimension)
        for slot in family[0]
    )
