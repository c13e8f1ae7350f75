"""Losses of detectors against plain scalar references, at the edges, and their gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevision.training.detection.losses.bce import logistic_loss
from edgevision.training.detection.losses.dfl import distribution_focal_loss, expected_distance
from edgevision.training.detection.losses.focal import focal_loss
from edgevision.training.detection.losses.iou import (
    BOX_LOSSES,
    ciou_loss,
    giou_loss,
    inversion,
    iou,
    iou_loss,
    pairwise_iou,
    siou_loss,
)
from edgevision.training.detection.losses.smooth_l1 import smooth_l1_loss
from edgevision.training.detection.losses.varifocal import varifocal_loss

# both sides compute in float64 and differ by the order of a few dozen operations
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
UPPER = {"iou": 1.0, "giou": 2.0, "ciou": 3.0, "siou": 3.0}

# sixty-fourths: sides may be 0, but none is so thin that its area is taken for 0
coordinate = st.integers(-64_000, 64_000).map(lambda value: value / 64)
side = st.one_of(st.just(0.0), st.integers(1, 32_000).map(lambda value: value / 64))


@st.composite
def box(draw: st.DrawFn, least: float = 0.0) -> tuple[float, float, float, float]:
    left, top, width, height = draw(coordinate), draw(coordinate), draw(side), draw(side)
    return left, top, left + max(width, least), top + max(height, least)


logit = st.floats(-30, 30)


def tensor(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def reference_iou(a: tuple[float, ...], b: tuple[float, ...]) -> tuple[float, float]:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return (width * height / union if union else 0.0), union


def enclosing(a: tuple[float, ...], b: tuple[float, ...]) -> tuple[float, float]:
    return max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1])


def offset(a: tuple[float, ...], b: tuple[float, ...]) -> tuple[float, float]:
    return (a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2


def reference_giou_loss(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    overlap, union = reference_iou(a, b)
    width, height = enclosing(a, b)
    around = width * height
    return 1 - overlap + ((around - union) / around if around else 0.0)


def reference_ciou_loss(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    overlap, _ = reference_iou(a, b)
    dx, dy = offset(a, b)
    width, height = enclosing(a, b)
    diagonal = width**2 + height**2
    angle = [math.atan(max(x[2] - x[0], 1e-3) / max(x[3] - x[1], 1e-3)) for x in (a, b)]
    v = 4 / math.pi**2 * (angle[0] - angle[1]) ** 2
    alpha = v / (1 - overlap + v) if v else 0.0
    return 1 - overlap + ((dx**2 + dy**2) / diagonal if diagonal else 0.0) + alpha * v


def reference_siou_loss(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    overlap, _ = reference_iou(a, b)
    dx, dy = offset(a, b)
    sigma = math.hypot(dx, dy)
    # as the paper writes it; at equal centres there is no angle
    angle = 1 - 2 * math.sin(math.asin(min(1.0, abs(dy) / sigma)) - math.pi / 4) ** 2 if sigma else 0.0
    gamma = 2 - angle
    distance = sum(
        1 - math.exp(-gamma * (d / c) ** 2) if c else 0.0 for d, c in zip((dx, dy), enclosing(a, b), strict=True)
    )
    shape = 0.0
    for axis in (0, 1):
        mine, other = a[axis + 2] - a[axis], b[axis + 2] - b[axis]
        omega = abs(mine - other) / max(mine, other) if max(mine, other) else 0.0
        shape += (1 - math.exp(-omega)) ** 4
    return 1 - overlap + (distance + shape) / 2


REFERENCES = {
    "iou": lambda a, b: 1 - reference_iou(a, b)[0],
    "giou": reference_giou_loss,
    "ciou": reference_ciou_loss,
    "siou": reference_siou_loss,
}


@settings(max_examples=150, deadline=None)
@given(a=box(), b=box())
def test_box_losses_are_what_their_papers_say(a, b):
    for name, loss in BOX_LOSSES.items():
        value = loss(tensor(a), tensor(b))
        torch.testing.assert_close(value, tensor(REFERENCES[name](a, b)), **CLOSE)
        torch.testing.assert_close(value, loss(tensor(b), tensor(a)), **CLOSE)
        # a rounding of 1 − IoU either way
        assert -1e-12 <= value.item() <= UPPER[name] + 1e-12


@settings(max_examples=100, deadline=None)
@given(a=box(), b=box(), inverted=st.booleans())
def test_box_losses_have_finite_gradients_everywhere(a, b, inverted):
    if inverted:
        a = (a[2], a[3], a[0], a[1])
    for loss in (*BOX_LOSSES.values(), inversion):
        first = torch.tensor(a, dtype=torch.float32, requires_grad=True)
        second = torch.tensor(b, dtype=torch.float32, requires_grad=True)
        value = loss(first, second)
        value.backward()
        assert value.isfinite()
        assert first.grad.isfinite().all()
        assert second.grad.isfinite().all()


@pytest.mark.parametrize("name", sorted(BOX_LOSSES))
def test_box_losses_vanish_at_equality_with_no_gradient_for_shape_or_place(name):
    boxes = tensor([[0, 0, 10, 10], [-5, 3, 1e6, 4], [0.25, 0.25, 0.2505, 0.2505]])
    # a box without area overlaps nothing, itself neither
    assert BOX_LOSSES[name](boxes, boxes).abs().max() < 1e-9
    assert BOX_LOSSES[name](tensor([3, 3, 3, 3]), tensor([3, 3, 3, 3])) == 1


@pytest.mark.parametrize("name", ["giou", "ciou", "siou"])
def test_far_boxes_are_pulled_towards_each_other(name):
    predicted = torch.tensor([1000.0, 1000.0, 1010.0, 1010.0], requires_grad=True)
    BOX_LOSSES[name](predicted, torch.tensor([0.0, 0.0, 10.0, 10.0])).backward()
    # descent moves against the gradient: to the left and up, on both sides together
    assert predicted.grad[:2].sum() + predicted.grad[2:].sum() > 0


def test_iou_has_no_pull_where_boxes_do_not_meet():
    predicted = torch.tensor([100.0, 100.0, 110.0, 110.0], requires_grad=True)
    iou_loss(predicted, torch.tensor([0.0, 0.0, 10.0, 10.0])).backward()
    assert not predicted.grad.any()


@settings(max_examples=50, deadline=None)
@given(a=st.lists(box(), min_size=1, max_size=4), b=st.lists(box(), min_size=1, max_size=4))
def test_pairwise_iou_is_every_pair(a, b):
    table = pairwise_iou(tensor(a)[None], tensor(b)[None])
    assert table.shape == (1, len(a), len(b))
    for row, first in enumerate(a):
        for column, second in enumerate(b):
            torch.testing.assert_close(table[0, row, column], tensor(reference_iou(first, second)[0]), **CLOSE)


def test_huge_coordinates_do_not_overflow_float32():
    boxes = torch.tensor([[-1e8, -1e8, 1e8, 1e8], [0.0, 0.0, 1e-5, 1e-5]], requires_grad=True)
    target = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    for name, loss in BOX_LOSSES.items():
        value = loss(boxes, target)
        assert ((value >= 0) & (value <= UPPER[name])).all()
        (gradient,) = torch.autograd.grad(value.sum(), boxes)
        assert gradient.isfinite().all()


def test_inversion_is_0_for_proper_boxes_and_turns_others_back():
    target = torch.tensor([0.0, 0.0, 10.0, 20.0])
    assert inversion(torch.tensor([3.0, 3.0, 3.0, 5.0]), target) == 0
    turned = torch.tensor([6.0, 8.0, 1.0, 4.0], requires_grad=True)
    value = inversion(turned, target)
    value.backward()
    assert value.item() == pytest.approx(5 / 10 + 4 / 20)
    assert (turned.grad[:2] > 0).all()
    assert (turned.grad[2:] < 0).all()


@pytest.mark.parametrize("loss", [giou_loss, siou_loss])
def test_gradients_of_box_losses_are_the_derivatives(loss):
    # in general position: no two sides in one place, where the losses have kinks
    first = tensor([[0.0, 1.0, 10.0, 12.0], [0.0, 0.0, 4.0, 4.0], [20.0, 30.0, 25.0, 31.0]]).requires_grad_()
    second = tensor([[2.0, -3.0, 9.0, 14.0], [1.3, 0.7, 3.1, 6.2], [0.0, 2.0, 5.0, 9.0]])
    assert torch.autograd.gradcheck(lambda boxes: loss(boxes, second), (first,))


def test_ciou_has_no_gradient_through_alpha():
    predicted = tensor([0.0, 0.0, 10.0, 5.0]).requires_grad_()
    target = tensor([1.0, 1.0, 7.0, 9.0])
    ciou_loss(predicted, target).backward()
    fixed = predicted.detach().clone().requires_grad_()
    dx, dy = offset(fixed, target)
    width, height = enclosing(fixed, target)
    angle = torch.atan((fixed[2] - fixed[0]) / (fixed[3] - fixed[1])) - math.atan(6 / 8)
    v = 4 / math.pi**2 * angle**2
    overlap = iou(fixed, target)
    alpha = (v / (1 - overlap + v)).detach()
    (1 - overlap + (dx**2 + dy**2) / (width**2 + height**2) + alpha * v).backward()
    torch.testing.assert_close(predicted.grad, fixed.grad, **CLOSE)


@settings(max_examples=100, deadline=None)
@given(x=logit, quality=st.one_of(st.just(0.0), st.floats(0.001, 1)))
def test_varifocal_is_what_its_paper_says(x, quality):
    value = varifocal_loss(tensor(x), tensor(quality))
    log_p, log_not = -math.log1p(math.exp(-x)), -math.log1p(math.exp(x))
    if quality > 0:
        expected = -quality * (quality * log_p + (1 - quality) * log_not)
    else:
        expected = -0.75 * math.exp(log_p) ** 2 * log_not
    torch.testing.assert_close(value, tensor(expected), **CLOSE)
    assert value >= 0


@settings(max_examples=100, deadline=None)
@given(x=logit, y=st.sampled_from([0.0, 1.0]), alpha=st.floats(0, 1), gamma=st.sampled_from([0.0, 1.0, 2.0]))
def test_focal_is_what_its_paper_says(x, y, alpha, gamma):
    value = focal_loss(tensor(x), tensor(y), alpha=alpha, gamma=gamma)
    signed = x if y else -x
    p_t, log_p_t = 1 / (1 + math.exp(-signed)), -math.log1p(math.exp(-signed))
    weight = alpha if y else 1 - alpha
    # 1 − p_t cancels in the reference: at p_t near 1 it is right to 1e-16 absolute
    torch.testing.assert_close(value, tensor(-weight * (1 - p_t) ** gamma * log_p_t), rtol=1e-6, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(x=logit, y=st.floats(0, 1))
def test_logistic_loss_is_the_cross_entropy(x, y):
    expected = y * math.log1p(math.exp(-x)) + (1 - y) * math.log1p(math.exp(x))
    torch.testing.assert_close(logistic_loss(tensor(x), tensor(y)), tensor(expected), **CLOSE)


@settings(max_examples=50, deadline=None)
@given(d=st.floats(-100, 100))
def test_smooth_l1_is_what_its_paper_says(d):
    expected = d * d / 2 if abs(d) < 1 else abs(d) - 0.5
    torch.testing.assert_close(smooth_l1_loss(tensor(d), tensor(0.0)), tensor(expected), **CLOSE)


@settings(max_examples=100, deadline=None)
@given(logits=st.lists(logit, min_size=2, max_size=17), share=st.floats(0, 1))
def test_dfl_is_what_its_paper_says(logits, share):
    n = len(logits) - 1
    y = share * n
    value = distribution_focal_loss(tensor(logits), tensor(y))
    total = math.log(sum(math.exp(x) for x in logits))
    i = min(math.floor(y), n - 1)
    expected = -((i + 1 - y) * (logits[i] - total) + (y - i) * (logits[i + 1] - total))
    torch.testing.assert_close(value, tensor(expected), **CLOSE)


def test_dfl_beyond_its_ends_is_that_of_the_end_and_no_distance_is_out_of_range():
    logits = torch.randn(5, 9, dtype=torch.float64)
    for outside, end in ((-3.0, 0.0), (100.0, 8.0), (8.0000001, 8.0)):
        torch.testing.assert_close(
            distribution_focal_loss(logits, torch.full((5,), outside, dtype=torch.float64)),
            distribution_focal_loss(logits, torch.full((5,), end, dtype=torch.float64)),
        )


def test_dfl_is_least_for_the_distribution_that_means_the_distance():
    shares = tensor([1e-12, 0.75, 0.25, 1e-12])
    assert expected_distance(shares.log()).item() == pytest.approx(1.25)
    best = distribution_focal_loss(shares.log(), tensor(1.25))
    assert best.item() == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert distribution_focal_loss(tensor([0.0, 0.0, 0.0, 0.0]), tensor(1.25)) > best


def test_gradients_of_the_rest_are_the_derivatives():
    logits = tensor([[-2.0, 0.3, 1.7], [0.1, -0.4, 5.0]]).requires_grad_()
    quality = tensor([[0.0, 0.8, 0.0], [0.3, 0.0, 1.0]])
    labels = (quality > 0.5).double()
    distance = tensor([0.4, 1.5])
    assert torch.autograd.gradcheck(lambda x: varifocal_loss(x, quality), (logits,))
    assert torch.autograd.gradcheck(lambda x: focal_loss(x, labels), (logits,))
    assert torch.autograd.gradcheck(lambda x: distribution_focal_loss(x, distance), (logits,))
    assert torch.autograd.gradcheck(expected_distance, (logits,))


@pytest.mark.parametrize("extreme", [-200.0, 200.0])
def test_extreme_logits_are_finite_in_float32(extreme):
    logits = torch.full((2, 9), extreme, requires_grad=True)
    ends = torch.tensor([0.0, 1.0])[:, None].expand(2, 9).contiguous()
    value = (
        varifocal_loss(logits, ends).sum()
        + focal_loss(logits, ends).sum()
        + logistic_loss(logits, ends).sum()
        + distribution_focal_loss(logits, torch.tensor([0.0, 8.0])).sum()
    )
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()
