from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from edgevision.training.ema import ExponentialMovingAverage, decay_at


def test_decay_grows_to_its_value() -> None:
    assert decay_at(0.999, 0) == pytest.approx(0.1)
    assert decay_at(0.999, 8) == pytest.approx(0.5)
    assert decay_at(0.9, 1000) == 0.9
    decays = [decay_at(0.99, updates) for updates in range(2000)]
    assert decays == sorted(decays)


def test_average_follows_the_formula() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    average = ExponentialMovingAverage(model, 0.8)
    expected = {name: value.clone().double() for name, value in model.state_dict().items()}
    for updates in range(12):
        with torch.no_grad():
            for value in model.parameters():
                value.add_(torch.randn_like(value))
        model(torch.randn(5, 3))  # moves the running statistics and counts the batch
        average.update(model, updates)
        keep = min(0.8, (1 + updates) / (10 + updates))
        for name, value in model.state_dict().items():
            expected[name] = keep * expected[name] + (1 - keep) * value if value.is_floating_point() else value.clone()
    for name, value in average.module.state_dict().items():
        # twelve roundings of float32
        torch.testing.assert_close(value.double(), expected[name].double(), rtol=1e-5, atol=1e-6)


def test_average_does_not_train_and_leaves_the_model_alone() -> None:
    model = nn.Linear(2, 2)
    before = copy.deepcopy(model.state_dict())
    average = ExponentialMovingAverage(model, 0.9)
    average.update(model, 0)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in average.module.parameters())
    assert not average.module.training
