"""Sizes of networks as their papers count them: parameters and multiply-adds."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def count_parameters(model: nn.Module) -> int:
    """Number of learnable values; running statistics of batch norms are not counted."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_multiply_adds(model: nn.Module, input_shape: Sequence[int] = (1, 3, 224, 224)) -> int:
    """Multiply-adds (MACs) of all (transposed) convolutions and linear layers for an input of ``input_shape``
    [B, C, H, W].

    Biases, norms, activations, poolings and additions are not counted, as in the papers. Shapes are followed on
    the meta device: nothing is computed, and ``model`` is not touched.
    """
    total = 0

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Linear):
            total += output.numel() * module.in_features
        elif isinstance(module, nn.Conv2d):
            # [O, I / groups, kH, kW]: one output element takes I / groups · kH · kW
            total += output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.ConvTranspose2d):
            # [I, O / groups, kH, kW]: one input element gives to O / groups · kH · kW
            total += inputs[0].numel() * module.weight[0].numel()

    shadow = copy.deepcopy(model).to("meta").eval()
    for module in shadow.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            module.register_forward_hook(count)
    dtype = next((p.dtype for p in shadow.parameters() if p.is_floating_point()), torch.float32)
    with torch.no_grad():
        shadow(torch.empty(tuple(input_shape), dtype=dtype, device="meta"))
    return total
