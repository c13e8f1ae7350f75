"""Removing channels: every tensor a group reaches is cut at the group's positions."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from edgevision.models.channels import (
    CONVOLUTIONS,
    TRANSPOSED,
    HasChannelTensors,
    channel_counts,
    replace_tensor,
    set_channel_counts,
)
from edgevision.pruning.groups import ChannelGroup, IntArray


@torch.no_grad()
def remove_channels(model: nn.Module, groups: Iterable[ChannelGroup], keep: Mapping[str, Sequence[int]]) -> nn.Module:
    """A copy of ``model`` with the channels of ``keep`` alone, in their old order; ``model`` is not changed.

    Args:
        model: the network that ``groups`` were found in.
        groups: what `edgevision.pruning.find_groups` found.
        keep: group → its channels that stay, ascending; groups that are not named stay whole.

    Returns:
        the smaller network, in the mode (training or eval) of ``model``.
    """
    smaller = copy.deepcopy(model)
    modules = dict(smaller.named_modules())
    cuts = _removed(groups, keep)
    for (name, axis, dimension), removed in cuts.items():
        if axis == "tensor":
            owner, _, attribute = name.rpartition(".")
            _cut_tensor(modules[owner], attribute, dimension, removed)
        else:
            _cut_layer(modules[name], axis, removed)
    for prefix, module in smaller.named_modules():
        if isinstance(module, HasChannelTensors) and any(name.startswith(f"{prefix}.") for name, _, _ in cuts):
            module.channels_removed()
    return smaller


def removed_positions(group: ChannelGroup, keep: Sequence[int]) -> IntArray:
    """Channels of a group that are not in ``keep``."""
    gone = np.ones(group.channels, bool)
    gone[np.asarray(keep, np.int64)] = False
    return np.flatnonzero(gone)


def _removed(groups: Iterable[ChannelGroup], keep: Mapping[str, Sequence[int]]) -> dict[tuple[str, str, int], IntArray]:
    """Positions to cut on every axis, all groups that reach it together."""
    found: dict[tuple[str, str, int], list[IntArray]] = {}
    for group in groups:
        if group.name in keep:
            gone = removed_positions(group, keep[group.name])
            for member in group.members:
                key = (member.name, member.axis, member.dimension)
                found.setdefault(key, []).append(member.positions[gone].reshape(-1))
    cuts = {key: np.unique(np.concatenate(positions)) for key, positions in found.items()}
    return {key: positions for key, positions in cuts.items() if len(positions)}


def _cut_layer(module: nn.Module, axis: str, removed: IntArray) -> None:
    counts = channel_counts(module)
    assert counts is not None  # find_groups makes members of such layers only
    channels_in, channels_out, groups = counts
    grouped = isinstance(module, CONVOLUTIONS) and groups > 1
    if axis == "in":
        multiplier = grouped and groups == channels_in
        if not multiplier:
            # of a grouped layer's weight this axis holds one group's channels, and all groups lose the same ones
            within = removed[removed < channels_in // groups] if grouped else removed
            _cut_tensor(module, "weight", 0 if isinstance(module, TRANSPOSED) else 1, within)
        # a depthwise layer with several outputs per channel loses whole groups; its weight is cut by its outputs
        set_channel_counts(
            module, [channels_in - len(removed), channels_out, groups - len(removed) if multiplier else groups]
        )
        return
    for attribute in ("weight", "bias", "running_mean", "running_var"):
        dimension = 1 if attribute == "weight" and isinstance(module, TRANSPOSED) else 0
        _cut_tensor(module, attribute, dimension, removed)
    left = channels_out - len(removed)
    depthwise = axis == "both" and grouped
    set_channel_counts(module, [left if axis == "both" else channels_in, left, left if depthwise else groups])


def _cut_tensor(module: nn.Module, attribute: str, dimension: int, removed: IntArray) -> None:
    value = getattr(module, attribute, None)
    if isinstance(value, Tensor):
        stays = np.setdiff1d(np.arange(value.shape[dimension]), removed)
        cut = value.detach().index_select(dimension, torch.from_numpy(stays).to(value.device))
        replace_tensor(module, attribute, cut)
