from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgevision.distillation import LOSSES, channelwise_loss, feature_loss, logits_loss
from edgevision.distillation.features import make_adapter, same_size

TEMPERATURES = st.floats(0.25, 20)
SEEDS = st.integers(0, 2**31)


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_softmax(values: np.ndarray) -> np.ndarray:
    shifted = values - values.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def divergence(teacher: np.ndarray, student: np.ndarray) -> float:
    """Σ p · log(p / q) of the last axis' softmaxes, summed over the others."""
    log_p, log_q = log_softmax(teacher), log_softmax(student)
    return float((np.exp(log_p) * (log_p - log_q)).sum())


@given(SEEDS, TEMPERATURES, st.integers(1, 5), st.integers(2, 9))
@settings(max_examples=40, deadline=None)
def test_logits_loss_is_the_softened_divergence(seed: int, temperature: float, batch: int, classes: int) -> None:
    student, teacher = noise(seed, batch, classes), 3 * noise(seed + 1, batch, classes)
    expected = divergence(teacher.numpy() / temperature, student.numpy() / temperature) * temperature**2 / batch
    # float64 on both sides; the differences of logarithms cancel to about 1e-14
    assert float(logits_loss(student, teacher, temperature)) == pytest.approx(expected, rel=1e-9, abs=1e-11)


@given(SEEDS, TEMPERATURES, st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(2, 5))
@settings(max_examples=40, deadline=None)
def test_channelwise_loss_compares_where_each_channel_looks(
    seed: int, temperature: float, batch: int, channels: int, height: int, width: int
) -> None:
    shape = (batch, channels, height, width)
    student, teacher = noise(seed, *shape), 2 * noise(seed + 1, *shape)
    flat = (batch * channels, height * width)
    expected = divergence(teacher.numpy().reshape(flat) / temperature, student.numpy().reshape(flat) / temperature)
    expected *= temperature**2 / (batch * channels)
    assert float(channelwise_loss(student, teacher, temperature)) == pytest.approx(expected, rel=1e-9, abs=1e-11)


def test_channelwise_loss_does_not_mind_how_strongly_a_channel_answers_everywhere() -> None:
    student, teacher = noise(0, 2, 3, 4, 4), noise(1, 2, 3, 4, 4)
    shifted = student + noise(2, 2, 3, 1, 1)
    torch.testing.assert_close(channelwise_loss(shifted, teacher, 4.0), channelwise_loss(student, teacher, 4.0))


@given(SEEDS, st.floats(1e-3, 1e3))
@settings(max_examples=30, deadline=None)
def test_feature_loss_does_not_mind_the_layers_scale(seed: int, scale: float) -> None:
    student, teacher = noise(seed, 2, 3, 4, 4), noise(seed + 1, 2, 3, 4, 4)
    expected = float(((student - teacher) ** 2).mean() / (teacher**2).mean())
    assert float(feature_loss(scale * student, scale * teacher)) == pytest.approx(expected, rel=1e-9)


def test_a_dead_layer_of_the_teacher_is_no_division_by_zero() -> None:
    assert float(feature_loss(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3))) == 0.0


@pytest.mark.parametrize("name", LOSSES)
def test_an_equal_student_has_nothing_to_learn_and_the_teacher_gets_no_gradient(name: str) -> None:
    shape = (4, 7) if name == "logits" else (4, 3, 5, 5)
    teacher = noise(0, *shape).requires_grad_()
    student = teacher.detach().clone().requires_grad_()
    loss = LOSSES[name](student, teacher, 3.0)
    loss.backward()
    # sums of float64 probabilities are 1 up to about 1e-16
    assert abs(float(loss.detach())) < 1e-12
    assert float(student.grad.abs().max()) < 1e-12
    assert teacher.grad is None
    other = noise(1, *shape)
    assert float(LOSSES[name](other, teacher.detach(), 3.0)) > 0.01


def test_the_gradient_keeps_its_size_at_high_temperatures() -> None:
    """Section 2.1: for T far above the logits and centred logits, it becomes (z − v) / N, whatever T."""
    student, teacher = noise(0, 1, 10), noise(1, 1, 10)
    student, teacher = student - student.mean(), teacher - teacher.mean()
    for temperature in (200.0, 2000.0):
        moved = student.clone().requires_grad_()
        logits_loss(moved, teacher, temperature).backward()
        # the next term of the series is of the order of logits / T: 1%
        torch.testing.assert_close(moved.grad, (student - teacher) / 10, rtol=0.03, atol=3e-3)


def test_adapters_stand_only_where_widths_differ() -> None:
    assert isinstance(make_adapter(8, 8), nn.Identity)
    adapter = make_adapter(8, 12)
    assert adapter(torch.zeros(2, 8, 3, 5)).shape == (2, 12, 3, 5)


@given(*[st.integers(1, 9)] * 4)
@settings(max_examples=30, deadline=None)
def test_maps_meet_at_the_smaller_size(one: int, two: int, three: int, four: int) -> None:
    student, teacher = noise(0, 2, 3, one, two), noise(1, 2, 5, three, four)
    mine, theirs = same_size(student, teacher)
    assert mine.shape == (2, 3, min(one, three), min(two, four))
    assert theirs.shape == (2, 5, min(one, three), min(two, four))
    if (one, two) == tuple(mine.shape[2:]):
        assert mine is student
    if one % mine.shape[2] == 0 and two % mine.shape[3] == 0:  # even pools keep the mean
        torch.testing.assert_close(mine.mean(), student.mean())
