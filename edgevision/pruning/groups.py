"""Groups of channels that can only be removed together, as plain data: names and positions, no modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgevision.errors import UsageError
from edgevision.registry import unknown_name

IntArray = npt.NDArray[np.int64]

# "both": layers whose output channels are their input channels: norms, depthwise convolutions, PReLU
Axis = Literal["out", "in", "both", "tensor"]


@dataclass(frozen=True, eq=False)
class Member:
    """One axis of one layer that a group reaches.

    Attributes:
        name: of the module, as in ``named_modules``; of the parameter or buffer, where it belongs to no layer.
        axis: ``out`` (the layer makes these channels), ``in`` (it reads them), ``both``, or ``tensor``.
        positions: int64 [channels of the group, positions of each]: where channel i of the group is on this axis.
        dimension: of the tensor; −1 otherwise.
    """

    name: str
    axis: Axis
    positions: IntArray
    dimension: int = -1

    @property
    def per_channel(self) -> int:
        """Positions of this axis that go with one channel of the group."""
        return int(self.positions.shape[1])


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels of several layers that are tied to each other: by additions, concatenations, norms, depthwise layers.

    Attributes:
        name: of the first layer that makes them, with the range of its channels where these are not all.
        channels: how many there are. Removing channel i removes ``positions[i]`` of every member.
        members: the axes it reaches, in the order of the network's modules.
    """

    name: str
    channels: int
    members: tuple[Member, ...]

    @property
    def producers(self) -> tuple[Member, ...]:
        """Members whose layers make the channels."""
        return tuple(member for member in self.members if member.axis == "out")

    @property
    def consumers(self) -> tuple[Member, ...]:
        """Members whose layers read the channels."""
        return tuple(member for member in self.members if member.axis == "in")

    @property
    def width(self) -> int:
        """Channels of the first producer for each channel of the group: 1, and more where grouped layers tie some."""
        return self.producers[0].per_channel


@dataclass(frozen=True)
class KeptGroup:
    """Layers whose output channels stay as they are, and why."""

    name: str
    layers: tuple[str, ...]
    reason: str


@dataclass(frozen=True, eq=False)
class ChannelGroups:
    """All groups of a network.

    Attributes:
        groups: those that can be pruned, in the order of the network's modules.
        kept: those that cannot.
        input_shape: [B, C, H, W] that was traced.
    """

    groups: tuple[ChannelGroup, ...]
    kept: tuple[KeptGroup, ...]
    input_shape: tuple[int, ...]

    def __iter__(self) -> Iterator[ChannelGroup]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def names(self) -> list[str]:
        """Names of the groups that can be pruned."""
        return [group.name for group in self.groups]

    def __getitem__(self, name: str) -> ChannelGroup:
        """The group ``name``.

        Raises:
            UsageError: no such group, or it is kept and why.
        """
        for group in self.groups:
            if group.name == name:
                return group
        for kept in self.kept:
            if name == kept.name or name in kept.layers:
                raise UsageError(f"the channels of {name} cannot be pruned: {kept.reason}")
        for group in self.groups:
            if any(member.name == name for member in group.producers):
                raise UsageError(f"{name} is pruned together with {group.name}: name that group")
        raise UsageError(unknown_name("group", name, self.names()))

    def counts(self) -> dict[str, int]:
        """Channels of every group as the network is now."""
        return {group.name: group.channels for group in self.groups}

    def check_counts(self, counts: Mapping[str, int]) -> None:
        """Refuse counts of unknown groups, and counts that no group can have.

        Raises:
            UsageError: see above; a count of 0 would leave a layer without channels.
        """
        for name, count in counts.items():
            group = self[name]
            if not 1 <= count <= group.channels:
                emptied = ", ".join(member.name for member in group.producers)
                why = f"that would leave {emptied} without channels" if count < 1 else "pruning adds none"
                raise UsageError(f"{name} has {group.channels} channels; it cannot keep {count}: {why}")
