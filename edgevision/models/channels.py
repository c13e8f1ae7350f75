"""Channel counts of a network's layers: read, compared with those its builder gives, and set again.

A pruned network is its builder's network with other counts. A Checkpoint writes down those that differ, so that the
network is built again by its builder, `resize` and its weights, without the code that pruned it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from edgevision.errors import ModelError

# module name → [in, out, groups]; name of a parameter or buffer that belongs to no layer → its shape
ChannelCounts = dict[str, list[int]]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# norms over channels with statistics or an affine part of their own
CHANNEL_NORMS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip


@runtime_checkable
class HasChannelTensors(Protocol):
    """A block with a tensor for each channel besides those of its layers; pruning cuts it with the layer's outputs."""

    def channel_tensors(self) -> dict[str, str]:
        """Parameter or buffer of the block, whose first dimension is channels → layer whose outputs these are."""
        ...

    def channels_removed(self) -> None:
        """Called once channels have been removed from any of its layers."""
        ...


def channel_counts(module: nn.Module) -> list[int] | None:
    """Channels in, channels out and groups of a layer; None for modules that have none."""
    if isinstance(module, CONVOLUTIONS):
        return [module.in_channels, module.out_channels, module.groups]
    if isinstance(module, nn.Linear):
        return [module.in_features, module.out_features, 1]
    if isinstance(module, CHANNEL_NORMS):
        return [module.num_features, module.num_features, 1]
    if isinstance(module, nn.GroupNorm):
        return [module.num_channels, module.num_channels, module.num_groups]
    if isinstance(module, nn.PReLU):
        return [module.num_parameters, module.num_parameters, 1]
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
        return [module.normalized_shape[0], module.normalized_shape[0], 1]
    return None


def set_channel_counts(module: nn.Module, counts: Sequence[int]) -> None:
    """Make the attributes of a layer tell ``counts`` (in, out, groups); its tensors stay as they are."""
    channels_in, channels_out, groups = counts
    values: dict[str, Any]
    if isinstance(module, CONVOLUTIONS):
        values = {"in_channels": channels_in, "out_channels": channels_out, "groups": groups}
    elif isinstance(module, nn.Linear):
        values = {"in_features": channels_in, "out_features": channels_out}
    elif isinstance(module, CHANNEL_NORMS):
        values = {"num_features": channels_out}
    elif isinstance(module, nn.GroupNorm):
        values = {"num_channels": channels_out, "num_groups": groups}
    elif isinstance(module, nn.PReLU):
        values = {"num_parameters": channels_out}
    elif isinstance(module, nn.LayerNorm):
        values = {"normalized_shape": (channels_out,)}
    else:
        raise ModelError(f"{type(module).__name__} has no channels to set")
    for name, value in values.items():
        setattr(module, name, value)


def network_counts(model: nn.Module) -> ChannelCounts:
    """Counts of all layers of a network, and shapes of the parameters and buffers that belong to none."""
    layers = {name: channel_counts(module) for name, module in model.named_modules()}
    found: ChannelCounts = {name: counts for name, counts in layers.items() if counts is not None}
    return found | {name: list(tensor.shape) for name, tensor in loose_tensors(model).items()}


def loose_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers, of one dimension or more, that belong to no layer with channels."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    owners = dict(model.named_modules())
    return {
        name: tensor
        for name, tensor in tensors.items()
        if tensor.dim() and channel_counts(owners[name.rpartition(".")[0]]) is None
    }


def changed_counts(model: nn.Module) -> ChannelCounts:
    """Counts in which a network of `edgevision.models.create_model` differs from what its builder makes.

    Raises:
        ModelError: the builder's network has other layers.
    """
    from edgevision.models import MODELS

    architecture: Mapping[str, Any] = model.architecture  # type: ignore[assignment] # a dict, see create_model
    if architecture["name"] not in MODELS:  # nothing to compare with; building the checkpoint will say so
        return {}
    built, now = _built_counts(architecture), network_counts(model)
    if built.keys() != now.keys():
        others = sorted(built.keys() ^ now.keys())
        raise ModelError(
            f"{architecture['name']}: the network has other layers than its builder makes "
            f"({', '.join(others[:4])}{' …' if len(others) > 4 else ''}): a checkpoint of it could not be built again"
        )
    return {name: counts for name, counts in now.items() if counts != built[name]}


def _built_counts(architecture: Mapping[str, Any]) -> ChannelCounts:
    from edgevision.models import create_model

    # the caller's random numbers are left as they are
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):  # costs no memory and no time
                return network_counts(create_model(architecture["name"], **architecture["arguments"]))
        except (NotImplementedError, RuntimeError):  # a builder that looks at values
            return network_counts(create_model(architecture["name"], **architecture["arguments"]))


def resize(model: nn.Module, counts: Mapping[str, Sequence[int]]) -> None:
    """Give layers other channel counts, in place; their tensors get the shapes that go with them, and no values.

    Raises:
        ModelError: a name that is no layer or parameter of the network, or counts that no layer can have.
    """
    modules, tensors = dict(model.named_modules()), loose_tensors(model)
    for name, values in counts.items():
        numbers = [int(value) for value in values]
        if any(value < 1 for value in numbers):
            raise ModelError(f"{name} cannot have the channels {numbers}: all must be 1 or more")
        if name in modules and channel_counts(modules[name]) is not None and len(numbers) == 3:
            _resize_layer(modules[name], numbers, name)
        elif name in tensors and len(numbers) == tensors[name].dim():
            owner, _, attribute = name.rpartition(".")
            replace_tensor(modules[owner], attribute, _emptied(tensors[name], numbers))
        else:
            raise ModelError(f"the network has no layer {name} that could have the channels {numbers}")


def _resize_layer(module: nn.Module, counts: list[int], name: str) -> None:
    channels_in, channels_out, groups = counts
    if channels_in % groups or channels_out % groups:
        raise ModelError(f"{name}: {channels_in} and {channels_out} channels do not divide into {groups} groups")
    set_channel_counts(module, counts)
    shapes = {"bias": [channels_out], "running_mean": [channels_out], "running_var": [channels_out]}
    if isinstance(module, CONVOLUTIONS):
        first = [channels_in, channels_out // groups]
        shapes["weight"] = (first if isinstance(module, TRANSPOSED) else [channels_out, channels_in // groups]) + list(
            module.kernel_size
        )
    elif isinstance(module, nn.Linear):
        shapes["weight"] = [channels_out, channels_in]
    else:
        shapes["weight"] = [channels_out]
    for attribute, shape in shapes.items():
        value = getattr(module, attribute, None)
        if value is None:
            continue
        replace_tensor(module, attribute, _emptied(value, shape))


def replace_tensor(module: nn.Module, attribute: str, value: torch.Tensor) -> None:
    """Put ``value`` in the place of a parameter (which stays one, with a gradient or without) or of a buffer."""
    old = getattr(module, attribute)
    parameter = isinstance(old, nn.Parameter)
    setattr(module, attribute, nn.Parameter(value, requires_grad=old.requires_grad) if parameter else value)


def _emptied(value: torch.Tensor, shape: list[int]) -> torch.Tensor:
    # zeros: what is never filled must at least be the same on every machine
    return torch.zeros(shape, dtype=value.dtype, device=value.device)
