"""Criteria: decoding equal to the device's, losses equal to plain sums, and whatever odd batches may come."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from edgevision.detection.decoders import DECODERS
from edgevision.detection.postprocess import Postprocess
from edgevision.errors import ModelError, UsageError
from edgevision.training.detection.assigners.atss import adaptive_selection
from edgevision.training.detection.assigners.best_prior import best_prior
from edgevision.training.detection.assigners.jaccard import hard_negatives, jaccard_matching
from edgevision.training.detection.assigners.tal import task_aligned
from edgevision.training.detection.criteria.anchor_free import AnchorFreeCriterion
from edgevision.training.detection.criteria.decoding import (
    anchor_free_maps,
    anchor_maps,
    decode_offsets,
    default_box_maps,
    encode_offsets,
)
from edgevision.training.detection.criteria.ssd import SsdCriterion
from edgevision.training.detection.criterion import build_criterion
from edgevision.training.detection.losses.iou import BOX_LOSSES
from edgevision.training.detection.targets import Targets

HEIGHT, WIDTH = 64, 96
CLASSES = 3
STRIDES = [8, 16, 32]
ANCHORS = [[[10.0, 13.0], [16.0, 30.0]], [[30.0, 61.0], [62.0, 45.0]], [[116.0, 90.0], [60.0, 80.0]]]
PRIORS = [[[0.1, 0.1], [0.2, 0.3]], [[0.4, 0.3], [0.3, 0.6], [0.5, 0.5]]]
OPTIONS = {
    "yolov6": {"strides": STRIDES, "reg_max": 0, "num_classes": CLASSES},
    "yolov6_dfl": {"strides": STRIDES, "reg_max": 8, "num_classes": CLASSES},
    "yolov3": {"strides": STRIDES, "anchors": ANCHORS, "num_classes": CLASSES},
    "ssd": {"priors": PRIORS, "variances": [0.1, 0.2], "num_classes": CLASSES},
}
KINDS = tuple(OPTIONS)
CPU = torch.device("cpu")
# float32 on both sides, and coordinates of some hundreds of pixels
CLOSE = {"rtol": 1e-5, "atol": 1e-3}


class StandIn(nn.Module):
    """What a criterion looks at of a detector."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.name = kind.removesuffix("_dfl")
        self.head = SimpleNamespace(kind=self.name)
        self.strides = (16, 32) if kind == "ssd" else tuple(STRIDES)
        self.options = OPTIONS[kind]

    def postprocess(self) -> Postprocess:
        return Postprocess(decoder=self.name, options=self.options)


def raw_maps(kind: str, *, pictures: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random outputs of a head of a kind, for pictures of 64 × 96."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {}
    for level, stride in enumerate(STRIDES):
        cells = (HEIGHT // stride, WIDTH // stride)
        if kind == "yolov3":
            shapes[f"anchors_{stride}"] = (2 * (5 + CLASSES), *cells)
        elif kind == "ssd" and level:
            shapes[f"scores_{level - 1}"] = (len(PRIORS[level - 1]) * (1 + CLASSES), *cells)
            shapes[f"boxes_{level - 1}"] = (len(PRIORS[level - 1]) * 4, *cells)
        elif kind != "ssd":
            shapes[f"scores_{stride}"] = (CLASSES, *cells)
            shapes[f"boxes_{stride}"] = (4 * (1 + OPTIONS[kind]["reg_max"]), *cells)
    made = {}
    for name, shape in shapes.items():
        values = torch.randn(pictures, *shape, generator=generator)
        if kind == "yolov6" and name.startswith("boxes"):
            values = values.abs() * 2
        made[name] = values.requires_grad_()
    return made


def some_targets(pictures: int = 2) -> Targets:
    boxes = [np.array([[5.0, 6, 40, 50], [41, 3, 90, 60], [50, 20, 70, 44]]), np.array([[0.0, 0, 96, 64]])]
    labels = [np.array([0, 2, 1]), np.array([1])]
    return Targets.of_pictures(boxes[:pictures], labels[:pictures])


def numbers(outputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in outputs.items()}


def decoded(kind: str, outputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Boxes ``[B, N, 4]`` of all places by the functions that training uses."""
    options = OPTIONS[kind]
    if kind == "yolov3":
        return anchor_maps(outputs, STRIDES, ANCHORS).boxes()
    if kind == "ssd":
        _, offsets, defaults = default_box_maps(outputs, PRIORS)
        return decode_offsets(offsets, defaults, options["variances"]) * torch.tensor([WIDTH, HEIGHT] * 2)
    return anchor_free_maps(outputs, STRIDES, options["reg_max"]).boxes()


@pytest.mark.parametrize("kind", KINDS)
def test_training_decodes_as_the_device_does(kind):
    outputs = raw_maps(kind)
    if kind == "yolov3":
        # beyond the limit of the exponent
        outputs["anchors_8"].data[0, 2, 0, 0] = 50
    boxes = decoded(kind, outputs)
    decode = DECODERS.resolve(kind.removesuffix("_dfl"))
    # nothing is filtered: every place comes back, in the order of the maps
    found = decode(numbers(outputs), (HEIGHT, WIDTH), confidence=0.0, multi_label=False, **OPTIONS[kind])
    for picture, candidates in enumerate(found):
        torch.testing.assert_close(boxes[picture].detach(), torch.from_numpy(candidates.boxes), **CLOSE)


def test_training_scores_as_the_device_does():
    outputs = raw_maps("ssd")
    logits, _, _ = default_box_maps(outputs, PRIORS)
    found = DECODERS.resolve("ssd")(
        numbers(outputs), (HEIGHT, WIDTH), confidence=0.0, multi_label=False, **OPTIONS["ssd"]
    )
    best = logits.detach().softmax(-1)[..., 1:].max(-1)
    values = anchor_maps(raw_maps("yolov3"), STRIDES, ANCHORS).values.detach()
    others = DECODERS.resolve("yolov3")(
        numbers(raw_maps("yolov3")), (HEIGHT, WIDTH), confidence=0.0, multi_label=False, **OPTIONS["yolov3"]
    )
    product = (values[..., 4:5].sigmoid() * values[..., 5:].sigmoid()).max(-1)
    for picture in (0, 1):
        torch.testing.assert_close(best.values[picture], torch.from_numpy(found[picture].scores), **CLOSE)
        assert best.indices[picture].tolist() == found[picture].labels.tolist()
        torch.testing.assert_close(product.values[picture], torch.from_numpy(others[picture].scores), **CLOSE)
        assert product.indices[picture].tolist() == others[picture].labels.tolist()


def test_offsets_are_decoded_to_what_they_were_encoded_from():
    defaults = torch.tensor([[0.3, 0.4, 0.2, 0.1], [0.5, 0.5, 1.0, 0.7]])
    boxes = torch.tensor([[0.1, 0.2, 0.4, 0.6], [0.0, 0.0, 1.0, 0.05]])
    offsets = encode_offsets(boxes, defaults, (0.1, 0.2))
    torch.testing.assert_close(decode_offsets(offsets, defaults, (0.1, 0.2)), boxes)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def entropy(x: float, y: float) -> float:
    return y * math.log1p(math.exp(-x)) + (1 - y) * math.log1p(math.exp(x))


@pytest.mark.parametrize("kind", ["yolov6", "yolov6_dfl"])
@pytest.mark.parametrize("epoch", [0, 4])
def test_the_anchor_free_loss_is_the_sum_of_its_points(kind, epoch):
    outputs, targets = raw_maps(kind), some_targets()
    losses = build_criterion(StandIn(kind))(outputs, targets, epoch)
    reg_max = OPTIONS[kind]["reg_max"]
    maps = anchor_free_maps({name: value.detach() for name, value in outputs.items()}, STRIDES, reg_max)
    boxes = maps.boxes()
    assign = adaptive_selection if epoch < 4 else task_aligned
    found = assign(maps.logits, boxes, maps.points, targets)
    sums = {"class": 0.0, "box": 0.0, "dfl": 0.0}
    for picture, point in np.ndindex(*found.matched.shape):
        box = int(found.matched[picture, point])
        quality = float(found.quality[picture, point])
        for label, x in enumerate(maps.logits[picture, point].tolist()):
            q = quality if box >= 0 and targets.labels[picture, box] == label else 0.0
            sums["class"] += (q if q > 0 else 0.75 * sigmoid(x) ** 2) * entropy(x, q)
        if box < 0:
            continue
        truth = targets.boxes[picture, box]
        sums["box"] += 2.5 * quality * float(BOX_LOSSES["giou"](boxes[picture, point], truth))
        if reg_max:
            x, y = (float(value) for value in maps.points.centres[point])
            left, top, right, bottom = truth.tolist()
            for side, pixels in enumerate((x - left, y - top, right - x, bottom - y)):
                distance = min(max(pixels / float(maps.points.strides[point]), 0.0), reg_max)
                lower = min(math.floor(distance), reg_max - 1)
                shares = maps.sides[picture, point, side].softmax(-1).tolist()
                share = distance - lower
                focal = -((1 - share) * math.log(shares[lower]) + share * math.log(shares[lower + 1]))
                sums["dfl"] += 0.5 * quality * focal / 4
    asked = max(1.0, float(found.quality.sum()))
    assert asked > 1
    for part in ("class", "box", "dfl")[: 3 if reg_max else 2]:
        assert losses[part].item() == pytest.approx(sums[part] / asked, rel=1e-4)
    assert losses["loss"].item() == pytest.approx(sum(sums.values()) / asked, rel=1e-4)


def test_the_yolov3_loss_is_the_sum_of_its_places():
    outputs, targets = raw_maps("yolov3"), some_targets()
    losses = build_criterion(StandIn("yolov3"))(outputs, targets, 0)
    maps = anchor_maps({name: value.detach() for name, value in outputs.items()}, STRIDES, ANCHORS)
    found = best_prior(maps.boxes(), targets, anchors=ANCHORS, strides=STRIDES, shapes=maps.shapes)
    assert found.ignored.any()
    sums = {"class": 0.0, "box": 0.0, "objectness": 0.0}
    for picture, place in np.ndindex(*found.matched.shape):
        tx, ty, tw, th, objectness, *classes = maps.values[picture, place].tolist()
        box = int(found.matched[picture, place])
        if not found.ignored[picture, place]:
            sums["objectness"] += entropy(objectness, float(box >= 0))
        if box < 0:
            continue
        label = int(targets.labels[picture, box])
        sums["class"] += sum(entropy(x, float(index == label)) for index, x in enumerate(classes))
        left, top, right, bottom = targets.boxes[picture, box].tolist()
        (column, row), (width, height) = maps.corners[place].tolist(), maps.anchors[place].tolist()
        stride = float(maps.strides[place])
        wanted = ((left + right) / 2 / stride - column, (top + bottom) / 2 / stride - row)
        shape = (math.log((right - left) / width), math.log((bottom - top) / height))
        difference = np.subtract((sigmoid(tx), sigmoid(ty), tw, th), (*wanted, *shape))
        sums["box"] += float((difference**2).sum()) / 2
    for part, total in sums.items():
        assert losses[part].item() == pytest.approx(total / 4, rel=1e-4)  # four objects


def test_the_ssd_loss_is_the_sum_of_its_default_boxes():
    outputs, targets = raw_maps("ssd"), some_targets()
    losses = build_criterion(StandIn("ssd"))(outputs, targets, 0)
    logits, offsets, defaults = default_box_maps({name: value.detach() for name, value in outputs.items()}, PRIORS)
    unit = torch.tensor([WIDTH, HEIGHT] * 2)
    shares = Targets(targets.boxes / unit, targets.labels, targets.valid)
    corners = torch.cat((defaults[:, :2] - defaults[:, 2:] / 2, defaults[:, :2] + defaults[:, 2:] / 2), 1)
    matched = jaccard_matching(corners, shares)
    log_share = logits.log_softmax(-1)
    negative = hard_negatives(-log_share[..., 0], matched >= 0)
    count = int((matched >= 0).sum())
    assert int(negative.sum()) <= 3 * count
    classes = boxes = 0.0
    for picture, place in np.ndindex(*matched.shape):
        box = int(matched[picture, place])
        if box >= 0:
            classes -= float(log_share[picture, place, 1 + targets.labels[picture, box]])
            wanted = encode_offsets(shares.boxes[picture, box], defaults[place][None], (0.1, 0.2))[0]
            for d in (offsets[picture, place] - wanted).tolist():
                boxes += d * d / 2 if abs(d) < 1 else abs(d) - 0.5
        elif negative[picture, place]:
            classes -= float(log_share[picture, place, 0])
    assert losses["class"].item() == pytest.approx(classes / count, rel=1e-4)
    assert losses["box"].item() == pytest.approx(boxes / count, rel=1e-4)


def odd_batches() -> dict[str, Targets]:
    nothing = np.zeros((0, 4))
    none = np.zeros(0, np.int64)
    far = np.array([[1000.0, 1000, 1010, 1020], [-500, -500, -400, -450]])
    tiny = np.array([[3.0, 3, 3.2, 3.1], [95.9, 63.9, 96, 64], [7.5, 7.5, 8.5, 8.5]])
    flat = np.array([[3.0, 3, 3, 9], [5, 5, 4, 4], [np.nan, 0, 5, 5], [0, 0, np.inf, 5]])
    twins = np.repeat([[10.0, 10, 40, 40]], 40, axis=0)
    return {
        "nothing at all": Targets.of_pictures([nothing, nothing], [none, none]),
        "padding alone": Targets(torch.full((2, 3, 4), math.nan), torch.full((2, 3), -1), torch.zeros(2, 3).bool()),
        "one picture empty": Targets.of_pictures([nothing, tiny], [none, np.array([0, 1, 2])]),
        "outside of the picture": Targets.of_pictures([far, nothing], [np.array([0, 1]), none]),
        "smaller than a stride": Targets.of_pictures([tiny, tiny], [np.array([0, 1, 2])] * 2),
        "without area": Targets.of_pictures([flat, flat], [np.arange(4) % 3] * 2),
        "forty in one place": Targets.of_pictures([twins, nothing], [np.arange(40) % 3, none]),
        "beyond the picture": Targets.of_pictures([np.array([[-1e4, -1e4, 1e4, 1e4]]), nothing], [np.array([1]), none]),
    }


@pytest.mark.parametrize("what", list(odd_batches()))
@pytest.mark.parametrize("kind", KINDS)
def test_odd_batches_have_a_finite_loss_and_gradients(kind, what):
    targets = odd_batches()[what]
    for box_loss in (None, *BOX_LOSSES):
        for assigner, epoch in (("tal", 0), ("tal", 4), ("simota", 4))[: 3 if kind.startswith("yolov6") else 1]:
            outputs = raw_maps(kind)
            losses = build_criterion(StandIn(kind), box_loss=box_loss, assigner=assigner)(outputs, targets, epoch)
            losses["loss"].backward()
            assert all(value.isfinite() for value in losses.values())
            # even where nothing is to be found every map takes part, so that processes that train together agree
            assert all(value.grad is not None and value.grad.isfinite().all() for value in outputs.values())
            assert losses["loss"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_without_area_are_no_boxes(kind):
    outputs, targets = raw_maps(kind), some_targets()
    flat = torch.tensor([[[9.0, 9, 9, 30], [50, 20, 40, 30]]]).repeat(2, 1, 1)
    more = Targets(
        torch.cat((targets.boxes, flat), 1),
        torch.cat((targets.labels, torch.ones(2, 2, dtype=torch.int64)), 1),
        torch.cat((targets.valid, torch.ones(2, 2, dtype=torch.bool)), 1),
    )
    criterion = build_criterion(StandIn(kind))
    for epoch in (0, 4):
        assert criterion(outputs, more, epoch)["loss"] == criterion(outputs, targets, epoch)["loss"]


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_the_loss_is_computed_in_float32(kind):
    outputs = {name: value.detach().bfloat16().requires_grad_() for name, value in raw_maps(kind).items()}
    criterion, targets = build_criterion(StandIn(kind)), some_targets()
    for epoch in (0, 4):
        with torch.autocast("cpu", torch.bfloat16):
            losses = criterion(outputs, targets, epoch)
        exact = criterion({name: value.float() for name, value in outputs.items()}, targets, epoch)
        losses["loss"].backward()
        for part, value in losses.items():
            assert value.dtype == torch.float32
            assert torch.equal(value, exact[part])
        assert all(value.grad.isfinite().all() for value in outputs.values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_batch_gives_the_same_bits(kind):
    criterion = build_criterion(StandIn(kind))
    results = []
    for _ in range(2):
        outputs = raw_maps(kind)
        loss = criterion(outputs, some_targets(), 4)["loss"]
        loss.backward()
        results.append((loss, [value.grad for value in outputs.values()]))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_add_up_and_carry_no_gradient(kind):
    losses = build_criterion(StandIn(kind))(raw_maps(kind), some_targets(), 0)
    expected = {"loss", "class", "box"} | {"yolov6_dfl": {"dfl"}, "yolov3": {"objectness"}}.get(kind, set())
    assert set(losses) == expected
    parts = [value for name, value in losses.items() if name != "loss"]
    torch.testing.assert_close(losses["loss"], torch.stack(parts).sum())
    assert losses["loss"].requires_grad
    assert not any(part.requires_grad for part in parts)


def test_atss_assigns_in_the_warm_up_and_then_what_was_asked_for():
    outputs, targets = raw_maps("yolov6"), some_targets()
    criterion = build_criterion(StandIn("yolov6"), warmup_epochs=2, assigner="simota", box_loss="siou")
    for epoch, assigner in ((0, "atss"), (1, "atss"), (2, "simota"), (9, "simota")):
        alone = AnchorFreeCriterion(STRIDES, assigner=assigner, warmup_epochs=0, box_loss="siou")
        assert criterion(outputs, targets, epoch)["loss"] == alone(outputs, targets, 0)["loss"]


def test_boxes_turned_inside_out_are_turned_back():
    outputs = raw_maps("yolov6")
    for name, value in outputs.items():
        if name.startswith("boxes"):
            value.data.fill_(-1.0)
    losses = build_criterion(StandIn("yolov6"))(outputs, some_targets(), 0)
    losses["loss"].backward()
    # descent makes the distances larger
    for stride in STRIDES[:2]:
        gradient = outputs[f"boxes_{stride}"].grad
        assert (gradient <= 0).all()
        assert (gradient < 0).any()


def test_ssd_knows_its_input_where_the_stride_does_not_divide_it():
    level = torch.zeros(1, 4, 19, 19)
    assert SsdCriterion(PRIORS, input_size=(300, 300))._size(level) == (300, 300)
    assert SsdCriterion(PRIORS, input_size=(320, 320))._size(level) == (304, 304)
    assert SsdCriterion(PRIORS)._size(level) == (304, 304)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"box_loss": "gioo"}, "unknown box loss 'gioo': did you mean giou"),
        ({"assigner": "tall"}, "unknown assigner 'tall': did you mean tal"),
        ({"warmup_epochs": -1}, "warmup_epochs is 0 or more"),
    ],
)
def test_wrong_settings_are_told(settings, message):
    with pytest.raises(UsageError, match=message):
        build_criterion(StandIn("yolov6"), **settings)


def test_other_networks_are_refused():
    with pytest.raises(ModelError, match="of the kind yolov6, yolov3, ssd, and not None"):
        build_criterion(nn.Linear(2, 2))
    with pytest.raises(ModelError, match=r"needs the detector's outputs scores_8, .* it has anchors_8"):
        build_criterion(StandIn("yolov6"))(raw_maps("yolov3"), some_targets())


def test_targets_of_pictures_are_padded():
    targets = some_targets()
    assert targets.boxes.shape == (2, 3, 4)
    assert targets.boxes.dtype == torch.float32
    assert targets.valid.tolist() == [[True] * 3, [True, False, False]]
    assert targets.labels.tolist() == [[0, 2, 1], [1, 0, 0]]
    assert Targets.of_pictures([], []).boxes.shape == (0, 0, 4)
    assert torch.equal(targets.to("cpu").boxes, targets.boxes)
    with pytest.raises(UsageError, match="as many labels as boxes"):
        Targets.of_pictures([np.zeros((2, 4))], [np.zeros(1)])
    with pytest.raises(UsageError, match=r"these are \[2, 4\], \[2\] and \[2\]"):
        Targets(torch.zeros(2, 4), torch.zeros(2), torch.zeros(2))


def test_what_can_be_learned_are_plain_numbers():
    for what, targets in odd_batches().items():
        learnable = targets.learnable(CPU)
        assert learnable.boxes.isfinite().all()
        assert learnable.boxes.shape[1] >= 1
        if what in ("without area", "padding alone", "nothing at all"):
            assert not learnable.valid.any()
