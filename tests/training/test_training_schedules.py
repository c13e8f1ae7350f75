from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgevision.errors import TrainingError
from edgevision.training import TrainConfig
from edgevision.training.optimizers import create_optimizer, parameter_groups
from edgevision.training.schedules import learning_rate

STEPS = 50


def test_warmup_is_linear_and_ends_at_lr() -> None:
    config = TrainConfig(lr=0.4, warmup_epochs=2)
    assert [learning_rate(config, step, STEPS) for step in range(100)] == pytest.approx(
        [0.4 * (step + 1) / 100 for step in range(100)]
    )


def test_cosine_closed_form() -> None:
    config = TrainConfig(lr=0.4, epochs=10, warmup_epochs=0)
    total = 10 * STEPS
    for step in (0, 1, 77, total // 2, total - 1):
        expected = 0.2 * (1 + math.cos(math.pi * step / total))
        assert learning_rate(config, step, STEPS) == pytest.approx(expected)
    assert learning_rate(config, 0, STEPS) == 0.4
    assert learning_rate(config, total // 2, STEPS) == pytest.approx(0.2)


def test_step_drops_at_the_right_epochs() -> None:
    config = TrainConfig(lr=1.0, schedule="step", step_size=3, gamma=0.1, warmup_epochs=0)
    by_epoch = [learning_rate(config, epoch * STEPS, STEPS) for epoch in range(9)]
    assert by_epoch == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01])
    assert learning_rate(config, 3 * STEPS - 1, STEPS) == 1.0


def test_constant_is_constant() -> None:
    config = TrainConfig(lr=0.3, schedule="constant", warmup_epochs=0)
    assert {learning_rate(config, step, STEPS) for step in range(500)} == {0.3}


@given(
    st.integers(1, 40), st.floats(0, 1), st.integers(1, 60), st.sampled_from(["cosine", "step", "constant"]),
    st.floats(1e-5, 10),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_every_rate_of_a_run_lies_between_zero_and_lr(
    epochs: int, warmup_share: float, steps: int, schedule: str, lr: float
) -> None:
    config = TrainConfig(epochs=epochs, warmup_epochs=warmup_share * epochs, schedule=schedule, lr=lr)
    rates = [learning_rate(config, step, steps) for step in range(epochs * steps)]
    assert all(0 < rate <= lr for rate in rates)


def test_norms_and_biases_do_not_decay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    decaying, spared = parameter_groups(model, 0.1)
    assert decaying["params"] == [model[0].weight, model[3].weight]
    assert decaying["weight_decay"] == 0.1
    assert spared["params"] == [model[0].bias, model[1].weight, model[1].bias, model[3].bias]
    assert spared["weight_decay"] == 0


def test_frozen_parameters_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    optimizer = create_optimizer(model, TrainConfig())
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == set(map(id, model[1].parameters()))
    with pytest.raises(TrainingError, match="no trainable parameter"):
        create_optimizer(model.requires_grad_(False), TrainConfig())


def test_the_named_optimizer_is_made() -> None:
    sgd = create_optimizer(nn.Linear(2, 2), TrainConfig(momentum=0.8, nesterov=False))
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.param_groups[0]["momentum"], sgd.param_groups[0]["nesterov"]) == (0.8, False)
    adamw = create_optimizer(nn.Linear(2, 2), TrainConfig(optimizer="adamw", momentum=0.85))
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.param_groups[0]["betas"] == (0.85, 0.999)
