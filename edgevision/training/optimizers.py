"""Optimizers, with weight decay kept from biases and normalisation layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from edgevision.errors import TrainingError
from edgevision.training.config import RunConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters into those that decay and those that do not.

    Biases and the scales and shifts of normalisation layers have one dimension; the weights of convolutions
    and linear layers have two or more. Decaying the former costs accuracy (He et al. 2019, "Bag of Tricks",
    section 3.1). Order within a group is the model's, which the saved optimizer state relies on.

    Raises:
        TrainingError: nothing is trainable.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise TrainingError("the model has no trainable parameter; set requires_grad on those to be trained")
    groups = [
        {"params": [parameter for parameter in trainable if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trainable if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def create_optimizer(model: nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    """The optimizer ``config`` asks for, over all trainable parameters of ``model``."""
    groups = parameter_groups(model, config.weight_decay)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999))
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)
