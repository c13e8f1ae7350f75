"""Each decoder against a loop over its cells, written from its family's description."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevision.detection import Postprocess
from edgevision.detection.decoders import DECODERS, family_of
from edgevision.errors import EngineError, UsageError

SIZE = (64, 96)  # height, width
CONFIDENCE = 0.3
# float32 on one side, Python's doubles on the other: pixels to within some 1e-5 of a hundred
CLOSE = {"rtol": 1e-4, "atol": 2e-3}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softmax(values) -> list[float]:
    powers = [math.exp(float(v)) for v in values]
    return [power / sum(powers) for power in powers]


def mean_of(values) -> float:
    return sum(index * share for index, share in enumerate(softmax(values)))


def above(box, scores, multi_label):
    """Candidates of one box: (label, score, box)."""
    found = [(label, float(score), box) for label, score in enumerate(scores) if score > CONFIDENCE]
    return found if multi_label or not found else [max(found, key=lambda one: one[1])]


def maps(strides, channels, rng, scale=1.5):
    return {s: rng.normal(0, scale, (2, channels, SIZE[0] // s, SIZE[1] // s)).astype(np.float32) for s in strides}


def yolov6(rng, multi_label, reg_max=0):
    strides, classes = (8, 16, 32), 4
    scores = {s: value - 1 for s, value in maps(strides, classes, rng).items()}
    sides = maps(strides, 4 * (reg_max + 1) if reg_max else 4, rng)
    outputs = {f"scores_{s}": value for s, value in scores.items()} | {f"boxes_{s}": v for s, v in sides.items()}
    expected = []
    for picture in range(2):
        found = []
        for s in strides:
            for row in range(SIZE[0] // s):
                for column in range(SIZE[1] // s):
                    raw = sides[s][picture, :, row, column]
                    left, top, right, bottom = [mean_of(g) for g in raw.reshape(4, -1)] if reg_max else raw.tolist()
                    x, y = column + 0.5, row + 0.5
                    box = [(x - left) * s, (y - top) * s, (x + right) * s, (y + bottom) * s]
                    found += above(box, [sigmoid(v) for v in scores[s][picture, :, row, column]], multi_label)
        expected.append(found)
    return outputs, {"reg_max": reg_max, "num_classes": classes}, expected


def yolov6_dfl(rng, multi_label):
    return yolov6(rng, multi_label, reg_max=6)


def yolov3(rng, multi_label):
    strides, anchors, classes = (32, 16), [[[40, 30], [20, 60]], [[8, 9], [12, 5]]], 3
    values = maps(strides, 2 * (5 + classes), rng)
    expected = []
    for picture in range(2):
        found = []
        for s, own in zip(strides, anchors, strict=True):
            for a, (width, height) in enumerate(own):
                for row in range(SIZE[0] // s):
                    for column in range(SIZE[1] // s):
                        v = values[s].reshape(2, 2, 5 + classes, SIZE[0] // s, -1)[picture, a, :, row, column].tolist()
                        x, y = (sigmoid(v[0]) + column) * s, (sigmoid(v[1]) + row) * s
                        w, h = width * math.exp(v[2]), height * math.exp(v[3])
                        box = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
                        found += above(box, [sigmoid(v[4]) * sigmoid(c) for c in v[5:]], multi_label)
        expected.append(found)
    return {f"anchors_{s}": values[s] for s in strides}, {"strides": strides, "anchors": anchors}, expected


def ssd(rng, multi_label):
    cells, classes = ((4, 6), (1, 2)), 3
    priors = [[[0.2, 0.2], [0.3, 0.1], [0.1, 0.3]], [[0.5, 0.5], [0.9, 0.4]]]
    scores = [rng.normal(0, 2, (2, len(p) * (classes + 1), *c)).astype(np.float32) for p, c in zip(priors, cells)]  # noqa: B905
    offsets = [rng.normal(0, 1, (2, len(p) * 4, *c)).astype(np.float32) for p, c in zip(priors, cells)]  # noqa: B905
    expected = []
    for picture in range(2):
        found = []
        for level, (own, (rows, columns)) in enumerate(zip(priors, cells, strict=True)):
            for a, (width, height) in enumerate(own):
                for row in range(rows):
                    for column in range(columns):
                        logits = scores[level][picture, a * (classes + 1) : (a + 1) * (classes + 1), row, column]
                        dx, dy, dw, dh = offsets[level][picture, a * 4 : a * 4 + 4, row, column].tolist()
                        x = ((column + 0.5) / columns + dx * 0.1 * width) * SIZE[1]
                        y = ((row + 0.5) / rows + dy * 0.1 * height) * SIZE[0]
                        w, h = width * math.exp(0.2 * dw) * SIZE[1], height * math.exp(0.2 * dh) * SIZE[0]
                        found += above([x - w / 2, y - h / 2, x + w / 2, y + h / 2], softmax(logits)[1:], multi_label)
        expected.append(found)
    outputs = {f"scores_{i}": value for i, value in enumerate(scores)}
    outputs |= {f"boxes_{i}": value for i, value in enumerate(offsets)}
    return outputs, {"priors": priors, "num_classes": classes}, expected


def cells_of(strides):
    return [(s, row, column) for s in strides for row in range(-(-SIZE[0] // s)) for column in range(-(-SIZE[1] // s))]


def centered(x, y, w, h):
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def yolov8(rng, multi_label):
    count = len(cells_of((8, 16, 32)))
    rows = np.concatenate([rng.uniform(0, 90, (2, 4, count)), rng.uniform(0, 0.5, (2, 3, count))], axis=1)
    rows = rows.astype(np.float32)
    expected = [
        [one for v in picture.T.tolist() for one in above(centered(*v[:4]), v[4:], multi_label)] for picture in rows
    ]
    return {"output0": rows}, {"num_classes": 3}, expected


def yolov8_turned(rng, multi_label):
    outputs, options, expected = yolov8(rng, multi_label)
    return {"output0": outputs["output0"].transpose(0, 2, 1)}, options, expected


def yolov5(rng, multi_label):
    count = 3 * len(cells_of((8, 16, 32)))
    rows = np.concatenate([rng.uniform(0, 90, (2, count, 4)), rng.uniform(0, 1, (2, count, 4))], axis=2)
    rows = rows.astype(np.float32)
    expected = [
        [one for v in p.tolist() for one in above(centered(*v[:4]), [v[4] * c for c in v[5:]], multi_label)]
        for p in rows
    ]
    return {"output": rows}, {"num_classes": 3}, expected


def yolox(rng, multi_label):
    places = cells_of((8, 16, 32))
    rows = np.concatenate([rng.normal(0, 1, (2, len(places), 4)), rng.uniform(0, 1, (2, len(places), 4))], axis=2)
    rows = rows.astype(np.float32)
    expected = []
    for picture in rows:
        found = []
        for (s, row, column), v in zip(places, picture.tolist(), strict=True):
            box = centered((v[0] + column) * s, (v[1] + row) * s, math.exp(v[2]) * s, math.exp(v[3]) * s)
            found += above(box, [v[4] * c for c in v[5:]], multi_label)
        expected.append(found)
    return {"output": rows}, {}, expected


def yolox_decoded(rng, multi_label):
    count = len(cells_of((8, 16, 32)))
    rows = np.concatenate([rng.uniform(1, 90, (2, count, 4)), rng.uniform(0, 1, (2, count, 4))], axis=2)
    rows = rows.astype(np.float32)
    expected = [
        [one for v in p.tolist() for one in above(centered(*v[:4]), [v[4] * c for c in v[5:]], multi_label)]
        for p in rows
    ]
    return {"output": rows}, {"decoded": True}, expected


def nanodet(rng, multi_label):
    places = cells_of((8, 16, 32, 64))
    rows = np.concatenate([rng.uniform(0, 0.5, (2, len(places), 5)), rng.normal(0, 2, (2, len(places), 32))], axis=2)
    rows = rows.astype(np.float32)
    expected = []
    for picture in rows:
        found = []
        for (s, row, column), v in zip(places, picture, strict=True):
            left, top, right, bottom = (mean_of(group) for group in v[5:].reshape(4, 8))
            box = [(column - left) * s, (row - top) * s, (column + right) * s, (row + bottom) * s]
            found += above(box, v[:5].tolist(), multi_label)
        expected.append(found)
    return {"output": rows}, {}, expected


def fastestdet(rng, multi_label):
    values = rng.normal(0, 1, (2, 9, 4, 6)).astype(np.float32)
    values[:, 0], values[:, 5:] = rng.uniform(-0.02, 1, (2, 4, 6)), rng.uniform(-0.02, 1, (2, 4, 4, 6))
    expected = []
    for picture in values:
        found = []
        for row in range(4):
            for column in range(6):
                v = picture[:, row, column].tolist()
                x, y = (column + math.tanh(v[1])) / 6 * SIZE[1], (row + math.tanh(v[2])) / 4 * SIZE[0]
                scores = [max(v[0], 0) ** 0.6 * max(c, 0) ** 0.4 for c in v[5:]]
                found += above(centered(x, y, sigmoid(v[3]) * SIZE[1], sigmoid(v[4]) * SIZE[0]), scores, multi_label)
        expected.append(found)
    return {"758": values}, {"num_classes": 4}, expected


def corners_and_chances(rng, columns):
    boxes = rng.uniform(0, 1, (2, 30, 4)).astype(np.float32)
    return boxes, rng.uniform(0, 0.6, (2, 30, columns)).astype(np.float32)


def ultraface(rng, multi_label):
    boxes, scores = corners_and_chances(rng, 2)
    unit = np.float32([SIZE[1], SIZE[0], SIZE[1], SIZE[0]])
    expected = [
        [one for b, s in zip((bs * unit).tolist(), ss, strict=True) for one in above(b, s[1:].tolist(), multi_label)]
        for bs, ss in zip(boxes, scores, strict=True)
    ]
    return {"scores": scores, "boxes": boxes}, {}, expected


def ssd_onnx(rng, multi_label):
    boxes, scores = corners_and_chances(rng, 3)
    boxes *= 60
    expected = [
        [one for b, s in zip(bs.tolist(), ss.tolist(), strict=True) for one in above(b, s, multi_label)]
        for bs, ss in zip(boxes, scores, strict=True)
    ]
    return {"places": boxes, "chances": scores}, {}, expected


def ssd_onnx_tensorflow(rng, multi_label):
    boxes, scores = corners_and_chances(rng, 4)
    expected = []
    for bs, ss in zip(boxes, scores, strict=True):
        found = []
        for (top, left, bottom, right), s in zip(bs.tolist(), ss.tolist(), strict=True):
            box = [left * SIZE[1], top * SIZE[0], right * SIZE[1], bottom * SIZE[0]]
            # the first column is the background
            found += above(box, s[1:], multi_label)
        expected.append(found)
    return {"boxes": boxes, "scores": scores}, {"order": "yxyx", "normalized": True, "background": 0}, expected


CASES = {
    "yolov6": yolov6, "yolov6 with DFL": yolov6_dfl, "yolov3": yolov3, "ssd": ssd, "yolov8": yolov8,
    "yolov8 turned": yolov8_turned, "yolov5": yolov5, "yolox": yolox, "yolox decoded": yolox_decoded,
    "nanodet": nanodet, "fastestdet": fastestdet, "ultraface": ultraface, "ssd_onnx": ssd_onnx,
    "ssd_onnx of TensorFlow": ssd_onnx_tensorflow,
}  # fmt: skip


def in_order(found):
    return sorted(found, key=lambda one: (one[0], one[1], one[2]))


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_decoder_finds_what_its_family_describes(case, multi_label):
    outputs, options, expected = CASES[case](np.random.default_rng(3), multi_label)
    decode = DECODERS.resolve(case.split()[0])
    found = decode(outputs, SIZE, confidence=CONFIDENCE, multi_label=multi_label, **options)
    assert len(found) == 2
    for candidates, wanted in zip(found, expected, strict=True):
        assert wanted
        assert candidates.boxes.dtype == candidates.scores.dtype == np.float32
        assert candidates.labels.dtype == np.int64
        rows = zip(candidates.labels.tolist(), candidates.scores.tolist(), candidates.boxes.tolist(), strict=True)
        got = in_order(rows)
        assert [label for label, _, _ in got] == [label for label, _, _ in in_order(wanted)]
        for index in (1, 2):
            left, right = [one[index] for one in got], [one[index] for one in in_order(wanted)]
            np.testing.assert_allclose(left, right, **CLOSE)


@pytest.mark.parametrize("case", CASES)
def test_no_candidate_is_below_the_confidence_and_1_finds_nothing(case):
    outputs, options, _ = CASES[case](np.random.default_rng(4), False)
    decode = DECODERS.resolve(case.split()[0])
    for confidence in (0.0, 0.2, 0.5):
        for candidates in decode(outputs, SIZE, confidence=confidence, multi_label=True, **options):
            assert (candidates.scores > confidence).all()
    for candidates in decode(outputs, SIZE, confidence=1.0, multi_label=True, **options):
        assert len(candidates) == 0
        assert candidates.boxes.shape == (0, 4)


@pytest.mark.parametrize("case", CASES)
def test_classes_are_counted(case):
    outputs, options, _ = CASES[case](np.random.default_rng(5), False)
    name = case.split()[0]
    counted = {"yolov6": 4, "nanodet": 5, "fastestdet": 4, "ultraface": 1}
    assert family_of(name).count_classes(outputs, SIZE, **options) == counted.get(name, 3)


@pytest.mark.parametrize("case", CASES)
def test_outputs_of_another_form_are_told_from_its_own(case):
    _, options, _ = CASES[case](np.random.default_rng(6), False)
    name = case.split()[0]
    wrong = {"logits": np.zeros((1, 1000), np.float32), "extra": np.zeros((1, 7, 3, 3, 1), np.float32)}
    with pytest.raises(EngineError, match=rf"decoder {name} expects .*the network gives logits \[1, 1000\], extra"):
        DECODERS.resolve(name)(wrong, SIZE, confidence=0.5, multi_label=False, **options)


@pytest.mark.parametrize("case", ["yolov6", "yolov3", "ssd", "yolov8", "yolov5", "yolox", "nanodet", "fastestdet"])
def test_another_number_of_classes_is_refused(case):
    outputs, options, _ = CASES[case](np.random.default_rng(7), False)
    with pytest.raises(EngineError, match=f"decoder {case} expects"):
        DECODERS.resolve(case)(outputs, SIZE, confidence=0.5, multi_label=False, **{**options, "num_classes": 11})


@pytest.mark.parametrize("case", ["yolov6", "yolov3", "yolov8", "yolov5", "yolox", "nanodet"])
def test_another_size_of_the_input_is_refused(case):
    outputs, options, _ = CASES[case](np.random.default_rng(8), False)
    with pytest.raises(EngineError, match=f"decoder {case} expects"):
        DECODERS.resolve(case)(outputs, (128, 128), confidence=0.5, multi_label=False, **options)


def test_as_many_classes_as_predictions_are_no_riddle():
    # 64 by 64 pixels make 84 predictions, and COCO's 80 classes 84 values
    rows = np.zeros((1, 84, 84), np.float32)
    rows[0, :, 5] = 10.0
    rows[0, 4:, 5] = 0.0
    rows[0, 4 + 17, 5] = 0.9
    (found,) = DECODERS.resolve("yolov8")({"o": rows}, (64, 64), confidence=0.5, multi_label=False)
    assert found.labels.tolist() == [17]
    assert found.boxes.tolist() == [[5, 5, 15, 15]]


def test_wild_logits_give_finite_boxes():
    raw = np.full((1, 3 * 8, 2, 3), 80.0, np.float32)
    (found,) = DECODERS.resolve("yolov3")(
        {"anchors_32": raw}, SIZE, confidence=0.5, multi_label=False, strides=(32,), anchors=(((9, 9),) * 3,)
    )
    assert len(found) == 18
    assert np.isfinite(found.boxes).all()


def test_unknown_orders_and_missing_priors_are_told():
    boxes, scores = corners_and_chances(np.random.default_rng(0), 3)
    with pytest.raises(UsageError, match="unknown order of a box 'yxxy': did you mean yxyx"):
        DECODERS.resolve("ssd_onnx")({"boxes": boxes, "scores": scores}, SIZE, confidence=0.5, order="yxxy")
    with pytest.raises(UsageError, match="needs priors"):
        DECODERS.resolve("ssd")({}, SIZE, confidence=0.5)


def test_boxes_and_scores_of_one_picture_may_lack_the_batch():
    boxes, scores = corners_and_chances(np.random.default_rng(1), 3)
    (found,) = DECODERS.resolve("ssd_onnx")({"b": boxes[0] * 50, "s": scores[0]}, SIZE, confidence=0.3)
    (batched,) = DECODERS.resolve("ssd_onnx")({"b": boxes[:1] * 50, "s": scores[:1]}, SIZE, confidence=0.3)
    assert np.array_equal(found.boxes, batched.boxes)


def test_every_decoder_knows_its_family():
    for name in DECODERS:
        family = family_of(name)
        if family.suppressed:
            # whoever suppressed has the rest in its own hands
            continue
        assert family.preprocess is not None
        assert family.count_classes is not None
        assert 0 < family.confidence < 1
        assert 0 < family.iou < 1


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 9)
    | st.sampled_from([8, 16, 32])
    | st.floats(-2, 2)
    | st.text("ab", max_size=3),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(CASES)), st.data())
def test_options_of_any_kind_are_used_or_refused(case, data):
    outputs, options, _ = CASES[case](np.random.default_rng(0), False)
    name = case.split()[0]
    parameters = inspect.signature(DECODERS.resolve(name)).parameters.values()
    valid = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in {"confidence", "multi_label"}]
    if not valid:
        return
    key = data.draw(st.sampled_from(valid))
    changed = Postprocess(name, {**options, key: data.draw(PLAIN)})
    try:
        found = changed.candidates(outputs, SIZE)
    except (EngineError, UsageError):
        return
    assert all(np.isfinite(one.scores).all() for one in found)
