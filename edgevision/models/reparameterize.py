"""Structural reparameterisation: a trained multi-branch network as the plain one that it is equal to.

RepVGG (arXiv 2101.03697, section 3.3); any module with an ``is_fused`` property and a ``fuse()`` method takes part.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class Reparameterizable(Protocol):
    """A block that can replace its branches by one convolution."""

    @property
    def is_fused(self) -> bool:
        """Whether it has done so already."""
        ...

    def fuse(self) -> None:
        """Do so, in place, for the statistics of eval mode."""
        ...


def is_reparameterizable(model: nn.Module) -> bool:
    """Whether any block of ``model`` still has branches to fuse."""
    return any(isinstance(module, Reparameterizable) and not module.is_fused for module in model.modules())


def reparameterize(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in eval mode with every `Reparameterizable` block fused; ``model`` is not changed.

    The copy of a zoo model records ``deploy=True`` in its ``architecture``, so that a Checkpoint of it reloads
    fused. Networks without such blocks come back as a plain copy.
    """
    fused = copy.deepcopy(model).eval()
    changed = False
    for module in list(fused.modules()):
        if isinstance(module, Reparameterizable) and not module.is_fused:
            module.fuse()
            changed = True
    architecture = getattr(fused, "architecture", None)
    if changed and isinstance(architecture, dict):
        architecture["arguments"]["deploy"] = True
    return fused


def reparameterization_error(model: nn.Module, fused: nn.Module, inputs: Tensor) -> float:
    """Largest absolute difference between the outputs of ``model`` and ``fused``, both in eval mode.

    Args:
        model: the network with branches.
        fused: what `reparameterize` made of it.
        inputs: float [B, C, H, W].

    Returns:
        the maximum over all elements of all outputs, in units of the outputs.
    """
    expected, got = _outputs(model, inputs), _outputs(fused, inputs)
    return max(float((a - b).abs().max()) for a, b in zip(expected, got, strict=True))


def _outputs(model: nn.Module, inputs: Tensor) -> Sequence[Tensor]:
    training = model.training
    try:
        with torch.inference_mode():
            outputs = model.eval()(inputs)
    finally:
        model.train(training)
    if isinstance(outputs, Mapping):
        return list(outputs.values())
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)
