"""Assigners against plain references, box by box and point by point, and what holds for all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevision.training.detection.assigners.assignment import claim, largest, rank_bits
from edgevision.training.detection.assigners.atss import adaptive_selection
from edgevision.training.detection.assigners.best_prior import best_prior
from edgevision.training.detection.assigners.jaccard import hard_negatives, jaccard_matching
from edgevision.training.detection.assigners.points import Points, grid_points, points_inside
from edgevision.training.detection.assigners.simota import simplified_optimal_transport
from edgevision.training.detection.assigners.tal import task_aligned
from edgevision.training.detection.targets import Targets

STRIDES = (8, 16, 32)
SIZE = 64
SHAPES = [(SIZE // stride, SIZE // stride) for stride in STRIDES]
CLASSES = 3
ASSIGNERS = (task_aligned, simplified_optimal_transport, adaptive_selection)
# the references compute in float64
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


@dataclass
class Scene:
    """Predictions for a few pictures with a few boxes."""

    logits: torch.Tensor
    boxes: torch.Tensor
    points: Points
    targets: Targets


def make_scene(seed: int, pictures: int = 2, places: int = 5) -> Scene:
    random = np.random.default_rng(seed)
    points = grid_points(SHAPES, STRIDES, torch.device("cpu"))
    count = len(points.centres)
    # eighths of a pixel: squared distances are exact in float32, and equal ones are equal in the references too
    sides = random.choice([8, 12, 20, 80, 160, 400], (pictures, places, 2)) / 8
    corner = random.integers(-80, SIZE * 8 - 40, (pictures, places, 2)) / 8
    truth = np.concatenate([corner, corner + sides], axis=-1)
    truth[:, 1] = np.where(random.random((pictures, 1)) < 0.3, truth[:, 0], truth[:, 1])  # twins
    valid = torch.from_numpy(random.random((pictures, places)) < 0.8)
    labels = torch.from_numpy(random.integers(0, CLASSES, (pictures, places)))
    targets = Targets(torch.from_numpy(truth).float(), labels, valid).learnable(torch.device("cpu"))
    distances = torch.from_numpy(random.uniform(0.1, 3, (pictures, count, 4))).float() * points.strides[:, None]
    boxes = torch.cat((points.centres - distances[..., :2], points.centres + distances[..., 2:]), dim=-1)
    logits = torch.from_numpy(random.normal(0, 2, (pictures, count, CLASSES))).float()
    return Scene(logits, boxes, points, targets)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0


def inside(box: np.ndarray, centres: np.ndarray) -> list[bool]:
    """Which points a box holds; if none, the nearest of the finest level."""
    held = [box[0] < x < box[2] and box[1] < y < box[3] for x, y in centres]
    if not any(held):
        across = SIZE // 8
        column = min(max(math.floor((box[0] + box[2]) / 16), 0), across - 1)
        row = min(max(math.floor((box[1] + box[3]) / 16), 0), across - 1)
        held[row * across + column] = True
    return held


def settle(wanted: dict[int, list[tuple[float, int]]], count: int) -> list[int]:
    """Each place to the box of the highest rank, of equal ones to the first."""
    return [
        max(wanted[place], key=lambda want: (want[0], -want[1]))[1] if place in wanted else -1 for place in range(count)
    ]


def first_largest(values: list[float], k: int) -> list[int]:
    return sorted(range(len(values)), key=lambda index: -values[index])[:k]


def each_picture(scene: Scene):
    for picture in range(len(scene.logits)):
        targets = scene.targets
        objects = [
            (number, targets.boxes[picture, number].double().numpy(), int(targets.labels[picture, number]))
            for number in range(targets.boxes.shape[1])
            if targets.valid[picture, number]
        ]
        yield picture, objects, scene.logits[picture].double().numpy(), scene.boxes[picture].double().numpy()


def reference_tal(scene: Scene, picture: int, objects, logits, boxes) -> tuple[list[int], list[float]]:
    centres = scene.points.centres.numpy()
    wanted: dict[int, list[tuple[float, int]]] = {}
    metrics = {}
    for number, box, label in objects:
        u = [overlap(box, each) for each in boxes]
        held = inside(box, centres)
        t = [held[place] * u[place] ** 6 / (1 + math.exp(-logits[place, label])) for place in range(len(boxes))]
        metrics[number] = (t, u)
        for place in first_largest(t, 13):
            if t[place] > 0:
                wanted.setdefault(place, []).append((u[place], number))
    matched = settle(wanted, len(boxes))
    quality = [0.0] * len(boxes)
    for number, (t, u) in metrics.items():
        own = [place for place in range(len(boxes)) if matched[place] == number]
        for place in own:
            quality[place] = t[place] / max(t[other] for other in own) * max(u[other] for other in own)
    return matched, quality


def reference_simota(scene: Scene, picture: int, objects, logits, boxes) -> tuple[list[int], list[float]]:
    centres, strides = scene.points.centres.numpy(), scene.points.strides.numpy()
    wanted: dict[int, list[tuple[float, int]]] = {}
    truth = {}
    for number, box, label in objects:
        truth[number] = box
        u = [overlap(box, each) for each in boxes]
        held = inside(box, centres)
        middle = (box[:2] + box[2:]) / 2
        near = [bool((np.abs(centres[i] - middle) < 2.5 * strides[i]).all()) for i in range(len(boxes))]
        candidates = [i for i in range(len(boxes)) if held[i] or near[i]]
        k = max(1, math.floor(sum(sorted((u[i] for i in candidates), reverse=True)[:10])))
        costs = {}
        for i in candidates:
            classes = sum(math.log1p(math.exp(-logits[i, c] if c == label else logits[i, c])) for c in range(CLASSES))
            cost = classes - 3 * math.log(max(u[i], 1e-8))
            costs[i] = cost if held[i] and near[i] else cost + 1e5
        for place in sorted(costs, key=lambda i: costs[i])[:k]:
            wanted.setdefault(place, []).append((-costs[place], number))
    matched = settle(wanted, len(boxes))
    return matched, [overlap(truth[m], boxes[i]) if m >= 0 else 0.0 for i, m in enumerate(matched)]


def reference_atss(scene: Scene, picture: int, objects, logits, boxes) -> tuple[list[int], list[float]]:
    centres, strides = scene.points.centres.numpy(), scene.points.strides.numpy()
    wanted: dict[int, list[tuple[float, int]]] = {}
    truth = {}
    for number, box, _ in objects:
        truth[number] = box
        middle = (box[:2] + box[2:]) / 2
        candidates, first = [], 0
        for count in scene.points.counts:
            away = [-float(((centres[i] - middle) ** 2).sum()) for i in range(first, first + count)]
            candidates += [first + i for i in first_largest(away, 9)]
            first += count
        half = {i: 2.5 * strides[i] for i in candidates}
        fit = {i: overlap(box, np.concatenate([centres[i] - half[i], centres[i] + half[i]])) for i in candidates}
        threshold = np.mean(list(fit.values())) + np.std(list(fit.values()), ddof=1)
        held = inside(box, centres)
        chosen = [i for i in candidates if held[i] and fit[i] >= threshold] or [i for i in candidates if held[i]]
        for place in chosen:
            wanted.setdefault(place, []).append((fit[place], number))
    matched = settle(wanted, len(boxes))
    return matched, [max(0.1, overlap(truth[m], boxes[i])) if m >= 0 else 0.0 for i, m in enumerate(matched)]


@pytest.mark.parametrize(
    ("assign", "reference"),
    list(zip(ASSIGNERS, (reference_tal, reference_simota, reference_atss), strict=True)),
)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_anchor_free_assigners_do_what_their_references_do(assign, reference, seed):
    scene = make_scene(seed)
    found = assign(scene.logits, scene.boxes, scene.points, scene.targets)
    for picture, objects, logits, boxes in each_picture(scene):
        matched, quality = reference(scene, picture, objects, logits, boxes)
        assert found.matched[picture].tolist() == matched
        torch.testing.assert_close(found.quality[picture].double(), torch.tensor(quality, dtype=torch.float64), **CLOSE)


@pytest.mark.parametrize("assign", ASSIGNERS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_padding_and_the_other_pictures_change_nothing(assign, seed):
    scene = make_scene(seed)
    whole = assign(scene.logits, scene.boxes, scene.points, scene.targets)
    assert ((whole.quality >= 0) & (whole.quality <= 1)).all()
    assert (whole.quality[whole.matched < 0] == 0).all()
    owners = scene.targets.valid.gather(1, whole.matched.clamp(min=0))
    assert owners[whole.matched >= 0].all()
    targets = scene.targets
    padded = Targets(
        torch.cat((targets.boxes, torch.zeros(2, 3, 4)), 1),
        torch.cat((targets.labels, torch.zeros(2, 3, dtype=torch.int64)), 1),
        torch.cat((targets.valid, torch.zeros(2, 3, dtype=torch.bool)), 1),
    )
    for picture in (0, 1):
        one = Targets(*(part[picture : picture + 1] for part in (padded.boxes, padded.labels, padded.valid)))
        alone = assign(scene.logits[picture : picture + 1], scene.boxes[picture : picture + 1], scene.points, one)
        assert torch.equal(alone.matched[0], whole.matched[picture])
        # the last bit of a root follows where in the array a value stands, and the sixth power has six times its error
        torch.testing.assert_close(alone.quality[0], whole.quality[picture], rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("assign", ASSIGNERS)
def test_no_boxes_are_all_background(assign):
    scene = make_scene(0)
    nothing = Targets(torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0, dtype=torch.bool))
    found = assign(scene.logits, scene.boxes, scene.points, nothing.learnable(torch.device("cpu")))
    assert (found.matched == -1).all()
    assert not found.quality.any()


@pytest.mark.parametrize("assign", ASSIGNERS)
def test_a_box_between_the_points_gets_one(assign):
    scene = make_scene(0, pictures=1)
    tiny = Targets.of_pictures([np.array([[6.5, 9.0, 8.5, 10.0]])], [np.array([1])])
    around = torch.cat((scene.points.centres - 8, scene.points.centres + 8), dim=-1)[None]
    found = assign(scene.logits, around, scene.points, tiny)
    # centre (7.5, 9.5): the cell of column 0 and row 1, whose point is (4, 12)
    assert found.matched[0, SIZE // 8].item() == 0


def test_equal_points_go_by_their_index():
    scene = make_scene(0, pictures=1)
    logits = torch.zeros_like(scene.logits)
    boxes = torch.tensor([8.0, 8.0, 56.0, 56.0]).expand_as(scene.boxes)
    targets = Targets.of_pictures([np.array([[8, 8, 56, 56]])], [np.array([0])])
    found = task_aligned(logits, boxes, scene.points, targets)
    held = points_inside(scene.points, targets)[0, 0].nonzero()[:, 0]
    assert found.matched[0].eq(0).nonzero()[:, 0].tolist() == held[:13].tolist()
    # equal scores: all as good as the best one, whose overlap is 1
    assert found.quality[0, held[:13]].tolist() == [1.0] * 13


def test_tal_has_other_exponents():
    scene = make_scene(0, pictures=1)
    whole = Targets.of_pictures([np.array([[0, 0, 64, 64]])], [np.array([0])])
    # point 0 is sure of the class, point 1 has the better box
    boxes = torch.zeros_like(scene.boxes)
    boxes[0, 0], boxes[0, 1] = torch.tensor([0, 0, 64.0, 32]), torch.tensor([0, 0, 64.0, 64])
    logits = torch.full_like(scene.logits, -9)
    logits[0, 0, 0] = 9
    for beta, best in ((1.0, 0), (20.0, 1)):
        found = task_aligned(logits, boxes, scene.points, whole, alpha=1.0, beta=beta, topk=1)
        assert found.matched[0].eq(0).nonzero().tolist() == [[best]]
    assert (task_aligned(logits, boxes, scene.points, whole, alpha=0.0, beta=0.0).quality[0, :2] > 0.9).all()


def test_points_are_the_centres_of_the_cells():
    points = grid_points([(2, 3), (1, 2)], (8, 16), torch.device("cpu"))
    assert points.centres.tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12], [8, 8], [24, 8]]
    assert points.strides.tolist() == [8] * 6 + [16] * 2
    assert points.counts == [6, 2]


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.sampled_from([0.0, -0.0, 1e-38, 0.25, 0.5, 3.0, 1e30]), min_size=1, max_size=20),
    k=st.integers(1, 25),
    smallest=st.booleans(),
)
def test_largest_is_a_stable_sort(values, k, smallest):
    ranks = rank_bits(torch.tensor(values))
    found = largest(-ranks if smallest else ranks, k)
    expected = sorted(range(len(values)), key=lambda index: values[index] if smallest else -values[index])
    assert found.tolist() == expected[:k]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_claim_gives_each_place_to_the_highest_rank(seed):
    random = np.random.default_rng(seed)
    boxes, k, places = int(random.integers(1, 6)), int(random.integers(1, 5)), 7
    candidates = np.stack([[random.permutation(places)[:k] for _ in range(boxes)] for _ in range(2)])
    ranks, chosen = random.integers(-2, 3, candidates.shape), random.random(candidates.shape) < 0.6
    found = claim(*(torch.from_numpy(part) for part in (candidates, ranks, chosen)), places)
    for picture in (0, 1):
        wanted: dict[int, list[tuple[float, int]]] = {}
        for box, index in np.argwhere(chosen[picture]):
            wanted.setdefault(int(candidates[picture, box, index]), []).append((ranks[picture, box, index], int(box)))
        assert found[picture].tolist() == settle(wanted, places)


ANCHORS = (((10, 13), (16, 30), (33, 23)), ((30, 61), (62, 45), (59, 119)))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_best_prior_is_what_its_paper_says(seed):
    scene = make_scene(seed)
    random = np.random.default_rng(seed)
    shapes, strides = ((8, 8), (4, 4)), (8, 16)
    places = [
        (start, stride, anchor, row, column)
        for start, (stride, (height, width), own) in enumerate(zip(strides, shapes, ANCHORS, strict=True))
        for anchor in own
        for row in range(height)
        for column in range(width)
    ]
    corner = random.uniform(-5, SIZE, (2, len(places), 2))
    boxes = np.concatenate([corner, corner + random.uniform(1, 40, corner.shape)], -1).astype(np.float32)
    # some that do overlap
    boxes[:, :10] = scene.targets.boxes.numpy()[:, :1] + np.float32(0.5)
    found = best_prior(torch.from_numpy(boxes), scene.targets, anchors=ANCHORS, strides=strides, shapes=shapes)
    for picture, objects, _, _ in each_picture(scene):
        wanted: dict[int, list[tuple[float, int]]] = {}
        for number, box, _ in objects:
            width, height = box[2:] - box[:2]
            fits = [
                overlap(np.array([0, 0, width, height]), np.array([0, 0, *anchor])) for own in ANCHORS for anchor in own
            ]
            best = max(range(len(fits)), key=lambda index: (fits[index], -index))
            level = best // 3
            column, row = (
                min(max(math.floor(middle / strides[level]), 0), shapes[level][0] - 1)
                for middle in (box[:2] + box[2:]) / 2
            )
            place = places.index((level, strides[level], ANCHORS[level][best % 3], row, column))
            wanted.setdefault(place, []).append((fits[best], number))
        matched = settle(wanted, len(places))
        assert found.matched[picture].tolist() == matched
        ignored = [
            matched[i] < 0 and any(overlap(box, boxes[picture, i].astype(np.float64)) > 0.5 for _, box, _ in objects)
            for i in range(len(places))
        ]
        assert found.ignored[picture].tolist() == ignored


def test_the_blocks_of_the_ignore_rule_are_one_whole(monkeypatch):
    scene = make_scene(5)
    boxes = scene.targets.boxes[:, :3].repeat(1, 64, 1) + 0.25
    arguments = {"anchors": ANCHORS[:1], "strides": (8,), "shapes": ((8, 8),)}
    whole = best_prior(boxes, scene.targets, **arguments)
    monkeypatch.setattr("edgevision.training.detection.assigners.best_prior._PAIRS", 1)
    one_by_one = best_prior(boxes, scene.targets, **arguments)
    assert torch.equal(whole.ignored, one_by_one.ignored)
    assert whole.ignored.any()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_jaccard_matching_is_what_its_paper_says(seed):
    scene = make_scene(seed)
    random = np.random.default_rng(seed)
    corner = random.integers(-40, SIZE * 8 - 80, (60, 2)) / 8
    defaults = np.concatenate([corner, corner + random.choice([10, 20, 50], (60, 2))], axis=1)
    defaults[:5] = scene.targets.boxes[0].numpy()  # some that fit, and twins
    found = jaccard_matching(torch.from_numpy(defaults).float(), scene.targets)
    for picture, objects, _, _ in each_picture(scene):
        wanted: dict[int, list[tuple[float, int]]] = {}
        best_of: dict[int, list[tuple[float, int]]] = {}
        for number, box, _ in objects:
            fits = [overlap(box, default) for default in defaults]
            for place, fit in enumerate(fits):
                if fit > 0.5:
                    wanted.setdefault(place, []).append((fit, number))
            best = max(range(len(fits)), key=lambda index: (fits[index], -index))
            if fits[best] > 0:
                best_of.setdefault(best, []).append((fits[best], number))
        assert found[picture].tolist() == settle({**wanted, **best_of}, len(defaults))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_hard_negatives_are_the_costliest_three_times_as_many(seed):
    random = np.random.default_rng(seed)
    loss = random.choice([0.0, 0.5, 0.5, 1.0, 2.0], (3, 20))
    positive = random.random((3, 20)) < np.array([[0.0], [0.1], [0.5]])
    found = hard_negatives(torch.from_numpy(loss), torch.from_numpy(positive))
    for picture in range(3):
        negatives = [i for i in range(20) if not positive[picture, i]]
        wanted = 3 * max(1, int(positive[picture].sum()))
        expected = sorted(negatives, key=lambda i: -loss[picture, i])[:wanted]
        assert found[picture].nonzero()[:, 0].tolist() == sorted(expected)
