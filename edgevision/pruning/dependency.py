"""Which channels can only go together: torch-pruning's dependency graph, brought into plain groups and then proved.

Fang et al. 2023, arXiv 2301.12900 (DepGraph). The graph takes ops it does not know for element-wise ones. So what it
says is tried: removing channels must give what the whole network gives when nobody reads those channels. Groups for
which that does not hold are kept, and named with the ops they go through.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch_pruning  # type: ignore[import-untyped]
from torch import Tensor, nn

from edgevision.errors import ModelError
from edgevision.models.channels import CONVOLUTIONS, TRANSPOSED, HasChannelTensors, channel_counts, loose_tensors
from edgevision.pruning.apply import remove_channels
from edgevision.pruning.groups import ChannelGroup, ChannelGroups, IntArray, KeptGroup
from edgevision.pruning.shuffled import tie_selections, with_selections
from edgevision.pruning.ties import Slot, Ties

# backward nodes of ops that treat each channel for itself: never to blame where a group cannot be followed
_HARMLESS = {
    "AddBackward0", "SubBackward0", "MulBackward0", "DivBackward0", "NegBackward0", "ReluBackward0",
    "HardtanhBackward0", "HardswishBackward0", "HardsigmoidBackward0", "SiluBackward0", "SigmoidBackward0",
    "TanhBackward0", "GeluBackward0", "LeakyReluBackward0", "EluBackward0", "ClampBackward0", "ClampBackward1",
    "MaxPool2DWithIndicesBackward0", "AvgPool2DBackward0", "AdaptiveAvgPool2DBackward0", "NativeDropoutBackward0",
    "UpsampleNearest2DBackward0", "UpsampleBilinear2DBackward0", "ConstantPadNdBackward0", "CatBackward0",
}  # fmt: skip

# float64 sums of the same products in another order: many digits above the rounding, far below any real change
_TOLERANCE = 1e-8


def find_groups(model: nn.Module, input_shape: Sequence[int]) -> ChannelGroups:
    """The groups of channels of ``model`` that can be pruned, and those that cannot and why.

    The network's own outputs and inputs are kept: logits, the outputs of detection heads, colour channels.

    Args:
        model: any module that takes one float tensor; it is not changed.
        input_shape: [B, C, H, W] of that tensor.

    Raises:
        ModelError: the network does not run on such an input, or leaves no trace that could be followed.
    """
    shape = tuple(int(size) for size in input_shape)
    working = _working_copy(model)
    inputs = torch.empty(shape).uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    ties = _trace(with_selections(working, inputs), inputs)
    groups, kept = ties.resolve()
    groups, refuted = _proved(working.double(), inputs.double(), groups, ties)
    untraced = [name for name, module in working.named_modules() if _makes_channels(module) and name not in ties.layers]
    if untraced:
        kept.append(KeptGroup(untraced[0], tuple(untraced), "no gradient comes through these layers"))
    return ChannelGroups(tuple(groups), tuple(kept + refuted), shape)


def _working_copy(model: nn.Module) -> nn.Module:
    """On the CPU, in eval mode, every parameter with a gradient, and no norm that multiplies by zero."""
    working = copy.deepcopy(model).cpu().float().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in working.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.uniform_(-0.1, 0.1, generator=generator)
    return working.requires_grad_(True)


def _makes_channels(module: nn.Module) -> bool:
    return isinstance(module, (*CONVOLUTIONS, nn.Linear))


def _trace(model: nn.Module, inputs: Tensor) -> Ties:
    """Everything the dependency graph says about the network."""
    outputs: list[Tensor] = []

    def record(result: Any) -> Any:
        outputs.extend(_tensors(result))
        return outputs

    graph = torch_pruning.DependencyGraph()
    try:
        with torch.enable_grad():
            graph.build_dependency(model, inputs, output_transform=record, verbose=False)
    except Exception as error:  # whatever the network's own code raises
        raise ModelError(
            f"{type(model).__name__} cannot be followed on an input of shape {list(inputs.shape)}: "
            f"{type(error).__name__}: {error}. Channels that are shuffled by reshaping are followed where the network "
            "does it with the modules of edgevision.models.shuffle"
        ) from error
    finals = [tensor.grad_fn for tensor in outputs]
    ties = Ties(dict(model.named_modules()), loose_tensors(model))
    for module in list(graph.module2node):
        if _makes_channels(module) and not _depthwise(module):
            root = ties.out_slot(module)
            if not ties.covered(root):
                _follow(graph, module, root, ties, finals)
    for module in model.modules():
        if isinstance(module, HasChannelTensors):
            _tie_channel_tensors(module, ties)
    tie_selections(model, ties)
    return ties


def _tie_channel_tensors(block: HasChannelTensors, ties: Ties) -> None:
    assert isinstance(block, nn.Module)
    for attribute, layer in block.channel_tensors().items():
        module = block.get_submodule(layer)
        if ties.name_of(module) in ties.layers:
            slot = ties.out_slot(module)
            positions = np.arange(slot.size)
            ties.tie(slot, positions, ties.tensor_slot(getattr(block, attribute), 0), positions)


def _follow(graph: Any, module: nn.Module, root: Slot, ties: Ties, finals: list[Any]) -> None:
    """Tie everything that goes with the output channels of one layer."""
    pruner = graph.get_pruner_of_module(module)
    counts = channel_counts(module)
    assert counts is not None
    everything = np.arange(counts[1])
    try:
        group = graph.get_pruning_group(module, pruner.prune_out_channels, everything.tolist())
    except Exception as error:  # whatever the graph makes of reshapes that it takes for flattening
        ties.refuse(root, everything, f"the dependency graph cannot follow them: {type(error).__name__}: {error}")
        return
    for item in group:
        node, target = item.dep.target, item.dep.target.module
        here, there = np.asarray(item.root_idxs, np.int64), np.asarray(item.idxs, np.int64)
        makes = graph.get_pruner_of_module(target).prune_out_channels == item.dep.handler
        reads = _makes_channels(target) and not _depthwise(target) and not makes
        if not reads and any(node.grad_fn is final for final in finals):
            ties.refuse(root, here, "they are outputs of the network")
        if isinstance(target, nn.Parameter):
            ties.tie(root, here, ties.tensor_slot(target, node.pruning_dim), there)
        elif channel_counts(target) is not None and not _unsupported(target):
            slot = ties.in_slot(target) if reads else ties.out_slot(target)
            known = there < slot.size
            if not known.all():
                ties.refuse(root, here, f"the dependency graph loses count of them before {slot.name}")
            ties.tie(root, here[known], slot, there[known])
        elif type(target).__module__.startswith("torch_pruning"):
            ties.passes(root, str(getattr(target, "_grad_fn", type(target).__name__.strip("_"))))
        else:
            ties.refuse(root, here, f"{ties.name_of(target)} ({type(target).__name__}) is a layer that cannot be cut")


def _depthwise(module: nn.Module) -> bool:
    return isinstance(module, CONVOLUTIONS) and 1 < module.groups == module.in_channels == module.out_channels


def _unsupported(module: nn.Module) -> bool:
    return isinstance(module, TRANSPOSED) and module.groups > 1


def _proved(
    model: nn.Module, inputs: Tensor, groups: list[ChannelGroup], ties: Ties
) -> tuple[list[ChannelGroup], list[KeptGroup]]:
    """Groups that do what they say, and those that do not."""
    if not groups or _holds(model, inputs, groups) is None:
        return groups, []
    accepted: list[ChannelGroup] = []
    refuted: list[KeptGroup] = []
    for group in groups:
        trouble = _holds(model, inputs, [*accepted, group])
        if trouble is None:
            accepted.append(group)
            continue
        ops = sorted({op for member in group.producers for op in ties.ops_of(member.name)})
        blamed = [op for op in ops if op not in _HARMLESS] or ops
        through = f" through {', '.join(blamed)}" if blamed else ""
        refuted.append(
            KeptGroup(
                group.name,
                tuple(member.name for member in group.producers),
                f"the dependency graph cannot follow them{through}: {trouble}",
            )
        )
    return accepted, refuted


@torch.no_grad()
def _holds(model: nn.Module, inputs: Tensor, groups: list[ChannelGroup]) -> str | None:
    """None where removing channels is the same as nobody reading them; else what was seen."""
    random = np.random.default_rng(0)
    keep = {
        group.name: np.sort(random.choice(group.channels, (group.channels + 1) // 2, replace=False)).tolist()
        for group in groups
    }
    expected = _tensors(_unread(model, groups, keep)(inputs))
    try:
        got = _tensors(remove_channels(model, groups, keep)(inputs))
    except Exception as error:  # shapes that no longer fit, raised by the network's own code
        return str(error).splitlines()[0]
    for a, b in zip(expected, got, strict=True):
        if a.shape != b.shape:
            return f"an output changes its shape from {list(a.shape)} to {list(b.shape)}"
        if not bool(torch.isfinite(a).all()):
            raise ModelError("the network's outputs are not finite on random input; its weights are damaged")
        if float((a - b).abs().max()) > _TOLERANCE * max(1.0, float(a.abs().max())):
            return "removing them changes what the other channels hold"
    return None


def _unread(model: nn.Module, groups: Iterable[ChannelGroup], keep: dict[str, list[int]]) -> nn.Module:
    """A copy in which no layer reads the channels that are not in ``keep``."""
    masked = copy.deepcopy(model)
    modules = dict(masked.named_modules())
    for group in groups:
        gone = np.setdiff1d(np.arange(group.channels), keep[group.name])
        for member in group.consumers:
            module: Any = modules[member.name]
            counts = channel_counts(module)
            assert counts is not None
            channels_in, _, layer_groups = counts
            if layer_groups == channels_in > 1:
                continue  # depthwise with several outputs per channel: whoever reads those is masked
            columns: IntArray = np.unique(member.positions[gone]) % (channels_in // layer_groups)
            dimension = 0 if isinstance(module, TRANSPOSED) else 1
            module.weight.index_fill_(dimension, torch.from_numpy(columns), 0.0)
    return masked


def _tensors(result: Any) -> list[Tensor]:
    """All float tensors of a network's answer, in order."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, dict):
        result = list(result.values())
    return [tensor for part in result for tensor in _tensors(part)] if isinstance(result, (list, tuple)) else []
