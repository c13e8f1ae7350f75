from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgevision.detection import Detections
from edgevision.detection.nms import non_maximum_suppression
from edgevision.errors import MissingDependencyError
from other_networks import fastestdet, mobilefacenet, ultraface
from other_networks.boxes import agreement, matched
from other_networks.case import Figure
from other_networks.engines import least_sqnr

MANY = settings(max_examples=60, deadline=None)
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def found(boxes: list[list[float]], scores: list[float], labels: list[int] | None = None) -> Detections:
    return Detections(
        np.asarray(boxes, float).reshape(-1, 4), np.asarray(scores, float), np.asarray(labels or [0] * len(scores), int)
    )


@st.composite
def detections(draw: st.DrawFn) -> Detections:
    count = draw(st.integers(0, 12))
    # whole pixels on a small field: overlaps, equal boxes and boxes without area all occur
    corners = draw(arrays(np.int64, (count, 2, 2), elements=st.integers(0, 8)))
    boxes = np.sort(corners, axis=1).reshape(count, 4)
    scores = draw(arrays(np.float64, count, elements=st.sampled_from([0.1, 0.25, 0.5, 0.75, 0.9])))
    return Detections(boxes.astype(float), scores, draw(arrays(np.int64, count, elements=st.integers(0, 1))))


def test_matching_gives_everyone_one_partner_of_the_same_class() -> None:
    one = found([[0, 0, 10, 10], [0, 0, 10, 10]], [0.9, 0.8])
    assert matched(one, found([[0, 0, 10, 10]], [0.9])) == 1
    assert matched(one, found([[0, 0, 10, 10]], [0.9], [1])) == 0
    assert matched(one, found([[0, 0, 10, 4]], [0.9])) == 0


@MANY
@given(detections())
def test_a_detector_agrees_with_itself(given_: Detections) -> None:
    real = (given_.boxes[:, 2:] > given_.boxes[:, :2]).all(axis=1)
    boxes, scores, labels = given_.boxes[real], given_.scores[real], given_.labels[real]
    kept = non_maximum_suppression(boxes, scores, labels, iou=0.45)
    own = Detections(boxes[kept], scores[kept], labels[kept])
    assert agreement([own], [own]) == 1.0
    assert agreement([own, found([], [])], [found([], []), found([], [])]) == (0.0 if len(own) else 1.0)


def cell_output(row: int, column: int, objectness: float, label: int, probability: float) -> np.ndarray:
    """FastestDet's output ``[85, 22, 22]`` with one cell that holds a box of a quarter of each side."""
    output = np.zeros((85, 22, 22), np.float32)
    output[0, row, column], output[5 + label, row, column] = objectness, probability
    output[1:3, row, column] = np.arctanh([0.5, -0.25])
    output[3:5, row, column] = np.log(1 / 3)  # sigmoid: 1/4
    return output


def test_fastestdet_detects_in_every_picture() -> None:
    maps = np.stack([cell_output(4, 7, 0.8, 17, 0.5), np.zeros((85, 22, 22), np.float32)])
    found = fastestdet.detect({"maps": maps}, [(440, 220), (10, 10)])
    assert [len(picture) for picture in found] == [1, 0]
    assert found[0].labels.tolist() == [17]
    # cells are 20 by 10 pixels: centre (7.5 · 20, 3.75 · 10), size (110, 55); float32 arithmetic
    assert found[0].boxes == pytest.approx(np.asarray([[95, 10, 205, 65]]), abs=1e-3)


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    boxes = {1: [10, 10, 30, 20], 2: [5, 5, 40, 40]}
    document = {
        "images": [{"id": key, "file_name": f"{key}.jpg", "width": 100, "height": 100} for key in (1, 2, 3)],
        "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}],
        "annotations": [
            {"id": key, "image_id": key, "category_id": 9, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for key, box in boxes.items()
        ],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(document))
    return path


def test_average_precision_of_all_half_and_nothing(annotations: Path) -> None:
    pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed: AP cannot be measured here")
    nothing = found([], [])
    right = [found([[10, 10, 40, 30]], [0.9], [1]), found([[5, 5, 45, 45]], [0.8], [1]), nothing]

    def ap(answers: list[Detections], image_ids: tuple[int, ...] = (1, 2, 3)) -> tuple[float, float]:
        return fastestdet.average_precision(annotations, image_ids, answers, (7, 9))

    assert ap(right) == pytest.approx((100, 100))
    assert ap([nothing] * 3) == (0, 0)
    # one of two objects found: precision 1 at the recalls 0, 0.01 ... 0.5 of COCO's 101
    assert ap([right[0], nothing, nothing]) == pytest.approx((100 * 51 / 101, 100 * 51 / 101))
    # judged on the first picture alone, what is missed in the second does not count
    assert ap(right[:1], (1,)) == pytest.approx((100, 100))
    # IoU 0.7: right at five of the ten thresholds, 0.50 to 0.70, and at 0.50 itself
    narrow = [found([[10, 10, 31.3, 30]], [0.9], [1]), nothing]
    assert ap(narrow, (1, 3)) == pytest.approx((50, 100))


def test_average_precision_says_what_is_missing(annotations: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgevision.dependencies.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="faster_coco_eval is needed to measure AP: pip install"):
        fastestdet.average_precision(annotations, [1], [found([[0, 0, 1, 1]], [0.5])], (7, 9))


PAIRS = st.lists(st.tuples(st.sampled_from([-0.5, 0.0, 0.1, 0.3, 0.8]), st.booleans()), min_size=2, max_size=25).filter(
    lambda pairs: len({same for _, same in pairs}) == 2
)


@MANY
@given(PAIRS)
def test_auc_is_the_share_of_pairs_ranked_rightly(pairs: list[tuple[float, bool]]) -> None:
    scores, same = np.asarray([score for score, _ in pairs]), np.asarray([same for _, same in pairs])
    difference = scores[same][:, None] - scores[~same][None, :]
    expected = np.mean((difference > 0) + 0.5 * (difference == 0))
    assert mobilefacenet.auc(scores, same) == pytest.approx(expected)  # sums of a few halves: exact but for rounding


@MANY
@given(PAIRS)
def test_no_threshold_is_better_than_the_best(pairs: list[tuple[float, bool]]) -> None:
    scores, same = np.asarray([score for score, _ in pairs]), np.asarray([same for _, same in pairs])
    threshold, accuracy = mobilefacenet.best_threshold(scores, same)
    assert np.mean((scores >= threshold) == same) == pytest.approx(accuracy)
    assert accuracy == pytest.approx(max(np.mean((scores >= cut) == same) for cut in [*scores, np.inf]))


def test_similarity_ignores_length() -> None:
    embeddings = np.asarray([[2.0, 0.0], [0.0, 3.0], [5.0, 0.0], [1.0, 1.0]])
    pairs = np.asarray([[0, 1], [0, 2], [0, 3]])
    assert mobilefacenet.similarities(embeddings, pairs) == pytest.approx([0, 1, 0.5**0.5])


def test_pairs_are_judged_at_the_threshold_of_fp32() -> None:
    fp32 = np.asarray([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    pairs, same = np.asarray([[0, 1], [2, 3], [0, 2], [1, 3]]), np.asarray([True, True, False, False])
    turned = fp32[[0, 2, 1, 3]]
    area, accuracy = mobilefacenet.judge_pairs("four", fp32, turned, pairs, same)
    # two people taken for each other: every wrong pair is now more alike than every right one
    assert (area.fp32, area.int8, area.loss) == (1.0, 0.0, 1.0)
    assert accuracy.fp32 == 100
    # all four answers change: what was alike is not, and the other way round
    assert area.agreement == accuracy.agreement == 0.0


def test_ultraface_decodes_faces_apart() -> None:
    boxes = np.float32([[[0.1, 0.1, 0.3, 0.3], [0.1, 0.1, 0.3, 0.31], [0.6, 0.6, 0.9, 0.9], [0.0, 0.0, 1.0, 1.0]]])
    face = np.float32([[0.8, 0.95, 0.75, 0.6]])
    outputs = {"scores": np.stack([1 - face, face], axis=2), "boxes": boxes}
    # as large as the input: no border
    (faces,) = ultraface.detect(outputs, [(320, 240)])
    assert faces.scores == pytest.approx([0.95, 0.75])
    assert faces.boxes == pytest.approx(boxes[0, [1, 2]] * np.float32([320, 240, 320, 240]))


def test_faces_are_counted_and_compared() -> None:
    one, moved = found([[0, 0, 2, 2]], [0.9]), found([[1, 0, 3, 2]], [0.9])
    none = found([], [])
    count, least = ultraface.judge_faces("three", [one, one, none], [one, moved, one], np.asarray([1, 1, 0]))
    assert (count.fp32, count.int8) == pytest.approx((100, 200 / 3))
    assert count.agreement == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert least.int8 == 0
    assert least.agreement == pytest.approx(1 / 3)


def test_a_loss_is_what_int8_lacks() -> None:
    assert Figure("a set", 10, "top-1 (%)", 92.5, 92.0, 0.99, "answers").loss == 0.5


def test_answers_lost_and_gained_are_counted() -> None:
    pytest.importorskip("torch", reason="torch is not installed: the network's module cannot be imported")
    from other_networks.resnet20 import judge_answers

    logits = np.eye(4)
    swapped = logits[[0, 2, 1, 3]]
    figure = judge_answers("four", logits, swapped, np.asarray([0, 1, 1, 2]))
    assert (figure.fp32, figure.int8, figure.agreement) == (50, 50, 0.5)
    assert (figure.lost, figure.gained) == (1, 1)


def test_noise_is_that_of_the_worst_output() -> None:
    fp32 = {"a": np.ones((2, 4), np.float32), "b": np.ones((2, 4), np.float32)}
    int8 = {"a": fp32["a"] * np.float32(1.01), "b": fp32["b"] * np.float32(1.1)}
    assert least_sqnr(fp32, int8) == pytest.approx(20, abs=1e-3)  # a tenth; float32 keeps 7 digits of it


def test_resnet20_has_the_papers_layers_and_parameters() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: the network cannot be built")
    from other_networks.resnet20 import Block, ResNet20

    net = ResNet20().eval()
    layers = [module for module in net.modules() if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear))]
    assert len(layers) == 20
    # Table 6 of the paper: 0.27 million
    assert sum(parameter.numel() for parameter in net.parameters()) == 269_722
    with torch.no_grad():
        assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
        block = Block(2, 4, 2).eval()
        block.bn2.weight.zero_()  # leaves the shortcut alone
        x = torch.rand(1, 2, 4, 4)
        y = block(x)
    # option A: every second pixel in the middle channels, zeros in the new ones
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert not y[:, [0, 3]].any()


@pytest.mark.data
def test_resnet20_keeps_its_published_accuracy(data_root: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: the network cannot be built")
    from edgevision.data import batches
    from edgevision.data.base import Subset
    from other_networks.resnet20 import judge_answers, open_resnet20

    case = open_resnet20(data_root)
    first = Subset(case.judged, range(501))  # cifar10/test; the JPEG files behind it are another set
    with torch.no_grad():
        logits = np.concatenate(
            [case.source(torch.from_numpy(x)).numpy() for x, _ in batches(first, case.preprocess, 64)]
        )
    figure = judge_answers("cifar10/test", logits, logits, first.labels)
    assert figure.fp32 == pytest.approx(92.8, abs=0.1)  # an answer is 0.2 points
    assert figure.agreement == 1


@pytest.mark.data
def test_nothing_judged_by_pairs_of_others_was_calibrated_on(data_root: Path) -> None:
    case = mobilefacenet.open_mobilefacenet(data_root)
    embeddings = {"output0": np.random.default_rng(0).standard_normal((len(case.judged), 8))}
    figures = case.judge(embeddings, embeddings)
    assert [figure.count for figure in figures] == [565, 565, 1200, 1200]
    assert len(case.calibration) == 100
    seen = {Path(sample.name).parent.name for sample in case.calibration}
    assert seen == {f"s{number:02}" for number in range(1, 11)}


def test_the_program_says_what_it_needs() -> None:
    ran = subprocess.run(
        [sys.executable, str(BENCHMARKS / "other_networks.py"), "--only", "fastestdet"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "EDGEVISION_DATA": ""},
    )
    assert ran.returncode == 1
    assert ran.stderr.startswith("EDGEVISION_DATA must name the folder")
