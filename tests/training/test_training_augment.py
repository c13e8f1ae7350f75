from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from edgevision.training import TrainConfig
from edgevision.training.augment import (
    Augment,
    Draw,
    Mix,
    draw_mix,
    erased_box,
    flip,
    neighbors,
    random_crop,
    uniform,
)
from edgevision.training.loop import classification_loss

ALL = TrainConfig(crop_padding=3, flip=True, erasing=0.7, seed=5)
unit = st.floats(0, 1, exclude_max=True)


def images(count: int, height: int = 9, width: int = 11, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(1, 256, (count, height, width, channels), dtype=np.uint8)


@given(st.integers(0, 2**63 - 1), st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_uniform_numbers_lie_in_the_unit_interval_and_spread(seed: int, epoch: int) -> None:
    numbers = uniform(seed, epoch, np.arange(4000), Draw.FLIP)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    # the mean of 4000 uniform numbers has the deviation 0.0046; six of them
    assert abs(numbers.mean() - 0.5) < 0.028
    assert len(np.unique(numbers)) == 4000


def test_uniform_numbers_differ_by_seed_epoch_and_use() -> None:
    indices = np.arange(1000)
    draws = [uniform(*key[:2], indices, key[2]) for key in [(0, 0, 1), (1, 0, 1), (0, 1, 1), (0, 0, 2)]]
    correlation = np.corrcoef(draws)
    # of 1000 independent pairs the correlation has the deviation 0.032; five of them
    assert np.abs(correlation - np.eye(4)).max() < 0.16


@given(st.integers(0, 2**31), st.integers(0, 500), st.permutations(range(8)))
@settings(max_examples=25, deadline=None)
def test_a_picture_is_changed_the_same_way_in_any_batch(seed: int, epoch: int, order: list[int]) -> None:
    augment = Augment(TrainConfig(crop_padding=2, flip=True, erasing=0.6, seed=seed))
    pictures, indices = images(8), np.arange(100, 108)
    together = augment(pictures, indices, epoch)
    shuffled = augment(pictures[order], indices[order], epoch)
    assert np.array_equal(together[order], shuffled)
    assert np.array_equal(augment(pictures[3:4], indices[3:4], epoch)[0], together[3])


def test_epochs_differ_and_the_input_stays() -> None:
    pictures = images(16)
    before = pictures.copy()
    first, second = (Augment(ALL)(pictures, np.arange(16), epoch) for epoch in (0, 1))
    assert np.array_equal(pictures, before)
    assert first.shape == pictures.shape
    assert first.dtype == np.uint8
    assert not np.array_equal(first, second)


def test_without_augmentation_nothing_changes() -> None:
    pictures = images(4)
    assert Augment(TrainConfig())(pictures, np.arange(4), 0) is pictures


@given(st.integers(1, 6), unit, unit)
@settings(max_examples=60, deadline=None)
def test_crop_is_a_window_of_the_padded_picture(padding: int, vertical: float, horizontal: float) -> None:
    pictures = images(1, 8, 10, 1)
    padded = np.pad(pictures[0], ((padding, padding), (padding, padding), (0, 0)))
    top, left = int(vertical * (2 * padding + 1)), int(horizontal * (2 * padding + 1))
    cropped = random_crop(pictures, padding, np.array([vertical]), np.array([horizontal]))
    assert np.array_equal(cropped[0], padded[top : top + 8, left : left + 10])


def test_crop_padding_beyond_the_picture_gives_black() -> None:
    cropped = random_crop(images(1, 4, 4), 6, np.array([0.0]), np.array([0.0]))
    assert cropped.shape == (1, 4, 4, 3)
    assert not cropped.any()


def test_flip_mirrors_the_chosen_ones_and_twice_is_nothing() -> None:
    pictures = images(4)
    chosen = np.array([True, False, True, False])
    flipped = flip(pictures, chosen)
    assert np.array_equal(flipped[0], pictures[0, :, ::-1])
    assert np.array_equal(flipped[1], pictures[1])
    assert np.array_equal(flip(flipped, chosen), pictures)


@given(st.integers(1, 64), st.integers(1, 64), unit, unit, unit, unit)
@settings(max_examples=100, deadline=None)
def test_erased_box_lies_in_the_picture(height: int, width: int, a: float, b: float, c: float, d: float) -> None:
    rows, columns = erased_box(height, width, a, b, c, d)
    assert 0 <= rows.start < rows.stop <= height
    assert 0 <= columns.start < columns.stop <= width


@given(st.floats(0, 0.9), unit)  # the largest areas at the longest sides are cut to fit
@settings(max_examples=60, deadline=None)
def test_erased_area_is_the_papers(area: float, aspect: float) -> None:
    rows, columns = erased_box(400, 400, area, aspect, 0.5, 0.5)
    share = (rows.stop - rows.start) * (columns.stop - columns.start) / 400**2
    # rounding a side of at least 400·sqrt(0.02·0.3) = 31 pixels moves the area by at most 2 · 0.5/31, 3.3%
    assert share == pytest.approx(0.02 + 0.31 * area, rel=0.034)


def test_erasing_one_box_of_one_colour() -> None:
    pictures = np.zeros((50, 16, 16, 3), np.uint8)
    erased = Augment(TrainConfig(erasing=1.0))(pictures, np.arange(50), 0)
    for picture in erased:
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) <= 2
    assert np.count_nonzero(erased.any((1, 2, 3))) >= 49  # black is one of 256³ colours


def test_neighbors_are_pairs() -> None:
    assert neighbors(6).tolist() == [1, 0, 3, 2, 5, 4]
    assert neighbors(5).tolist() == [1, 0, 3, 2, 4]
    assert neighbors(1).tolist() == [0]


@given(st.integers(0, 1000), st.integers(0, 1000), st.sampled_from([(0.2, 0.0), (0.0, 1.0), (0.3, 0.5)]))
@settings(max_examples=60, deadline=None)
def test_mixing_keeps_the_batch_mean_and_shape(epoch: int, step: int, alphas: tuple[float, float]) -> None:
    config = TrainConfig(mixup=alphas[0], cutmix=alphas[1])
    mix = draw_mix(config, epoch, step, 10, 14)
    assert mix == draw_mix(config, epoch, step, 10, 14)
    assert mix is not None
    assert 0 <= mix.weight <= 1
    batch = torch.rand(6, 3, 10, 14)
    mixed = mix.images(batch)
    assert mixed.shape == batch.shape
    # a pair exchanges what it mixes; float32 sums of 2520 values agree to about 1e-6
    assert float(mixed.mean()) == pytest.approx(float(batch.mean()), abs=1e-5)
    if mix.box is not None:
        top, bottom, left, right = mix.box
        assert mix.weight == pytest.approx(1 - (bottom - top) * (right - left) / 140)
        assert torch.equal(mixed[0, :, top:bottom, left:right], batch[1, :, top:bottom, left:right])


def test_half_a_batch_mixes_as_the_whole_does() -> None:
    batch = torch.rand(8, 3, 6, 6)
    for mix in (Mix(0.3), Mix(0.75, (0, 3, 0, 3))):
        halves = torch.cat([mix.images(batch[:4]), mix.images(batch[4:])])
        assert torch.equal(mix.images(batch), halves)


def test_mixup_is_the_weighted_sum() -> None:
    batch = torch.rand(2, 1, 4, 4)
    mixed = Mix(0.3).images(batch)
    # one rounding more or less of float32
    torch.testing.assert_close(mixed[0], 0.3 * batch[0] + 0.7 * batch[1])
    torch.testing.assert_close(mixed[1], 0.3 * batch[1] + 0.7 * batch[0])


def test_no_mix_is_none() -> None:
    assert draw_mix(TrainConfig(), 0, 0, 8, 8) is None


def test_mixed_loss_is_the_soft_label_cross_entropy() -> None:
    logits, labels, weight = torch.randn(4, 5), torch.tensor([0, 1, 2, 3]), 0.3
    loss, _ = classification_loss(logits, labels, Mix(weight), 0.0)
    one_hot = functional.one_hot(labels, 5).float()
    soft = weight * one_hot + (1 - weight) * one_hot[[1, 0, 3, 2]]
    expected = -(soft * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss, expected)


def test_label_smoothing_is_the_papers() -> None:
    logits, labels = torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
    loss, correct = classification_loss(logits, labels, None, 0.1)
    soft = 0.9 * functional.one_hot(labels, 5).float() + 0.1 / 5
    torch.testing.assert_close(loss, -(soft * logits.log_softmax(1)).sum(1).mean())
    assert int(correct) == int((logits.argmax(1) == labels).sum())
