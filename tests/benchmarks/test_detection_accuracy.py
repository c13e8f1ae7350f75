"""mAP of bundles: the stand-in detector finds every rectangle, so that the figures are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgevision.bundle import Bundle
from edgevision.data import open_dataset
from edgevision.data.base import Subset
from edgevision.data.datasets import complaints, crowd_regions
from edgevision.detection.evaluation import evaluation_postprocess
from edgevision.errors import DataError, UsageError
from edgevision.runtime import load
from edgevision_benchmarks.accuracy import evaluate, evaluate_bundle
from edgevision_benchmarks.bench import bench
from edgevision_benchmarks.detection_accuracy import (
    box_agreement,
    from_plain,
    plain,
)
from edgevision_benchmarks.report import Report
from edgevision_benchmarks.report.page import html
from tests import squares
from tests.benchmarks.report_samples import result

pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed: mAP cannot be measured here")


@pytest.fixture(autouse=True)
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    squares.register(tmp_path, monkeypatch)


def test_a_detector_that_finds_everything_has_an_map_of_one(tmp_path: Path) -> None:
    bundle = squares.make_bundle(tmp_path / "good.evb")
    found = evaluate_bundle(bundle, f"coco:{squares.write_coco(tmp_path / 'set')}", batch_size=4)
    # the rectangles' corners lie on whole pixels of the 64 pixel input, so that boxes are exact
    assert found.to_dict()["map"] == found.accuracy == 1.0
    assert (found.n, found.metric, found.detection.objects) == (6, "mAP", 18)
    assert list(found.to_dict()["per_class"]) == ["red", "green", "blue"]
    json.dumps(found.to_dict(), allow_nan=False)


def test_boxes_at_other_places_cost_map_at_high_overlaps_alone(tmp_path: Path) -> None:
    # moved by a fifth of their width: IoU 0.8 / 1.2 = 0.67, above four of the ten thresholds
    bundle = squares.make_bundle(tmp_path / "moved.evb", shift=0.2)
    found = evaluate_bundle(bundle, f"coco:{squares.write_coco(tmp_path / 'set')}").detection
    assert (found.map50, found.map75) == (1.0, 0.0)
    assert found.map == pytest.approx(0.4, abs=0.05)


def test_classes_are_matched_by_name_and_those_without_annotations_do_not_count(tmp_path: Path) -> None:
    bundle = squares.make_bundle(tmp_path / "good.evb")
    # blue rectangles are in the pictures and in no annotation
    data = squares.write_coco(tmp_path / "set", names=("green", "red"))
    found = evaluate_bundle(bundle, data).detection
    assert found.map == 1.0
    assert [(one.name, one.objects) for one in found.per_class] == [("red", 6), ("green", 6), ("blue", 0)]


def test_a_class_that_the_network_does_not_know_is_an_error(tmp_path: Path) -> None:
    bundle = squares.make_bundle(tmp_path / "good.evb", classes=("red", "lime", "navy"))
    data = squares.write_coco(tmp_path / "set", names=("green", "red"))
    with pytest.raises(DataError, match="class 'green' is none of the 3 classes of squares"):
        evaluate_bundle(bundle, data)


def test_scores_far_below_the_bundles_confidence_count(tmp_path: Path) -> None:
    # AP looks at the order of scores alone: all of them are below the bundle's 0.25
    bundle = squares.make_bundle(tmp_path / "unsure.evb", scores=0.05)
    assert evaluate_bundle(bundle, squares.write_coco(tmp_path / "set")).accuracy == 1.0


def test_crowds_are_ignored_and_bad_boxes_are_told(tmp_path: Path) -> None:
    path = squares.write_coco(tmp_path / "set")
    document = json.loads(path.read_text())
    blue = [record for record in document["annotations"] if record["category_id"] == 27]
    for record in blue:
        record["iscrowd"] = 1
    document["annotations"].append({**blue[0], "id": 900, "iscrowd": 0, "bbox": [5, 5, 0, 9]})
    path.write_text(json.dumps(document))
    dataset = open_dataset(path)
    found = evaluate_bundle(squares.make_bundle(tmp_path / "good.evb"), dataset).detection
    # the boxes found in crowds are no false ones
    assert (found.map, found.objects, found.per_class[2].map) == (1.0, 12, None)
    chosen = Subset(dataset, [4, 1])
    assert [region.labels.tolist() for region in crowd_regions(chosen)] == [[2], [2]]
    assert complaints(chosen) == [f"coco:{path}: left out boxes: 1 without area"]


def test_agreement_with_a_reference_needs_no_annotations(tmp_path: Path) -> None:
    good = squares.make_bundle(tmp_path / "good.evb")
    moved = squares.make_bundle(tmp_path / "moved.evb", shift=0.5)
    squares.write_coco(tmp_path / "set")
    pictures = f"images:{tmp_path / 'set' / 'images'}"
    same = evaluate_bundle(good, pictures, reference=good)
    assert (same.agreement, same.accuracy, same.detection) == (1.0, None, None)
    # IoU 0.5 / 1.5: no box has a partner
    assert evaluate_bundle(moved, pictures, reference=good).to_dict() == {"n": 6, "agreement": 0.0, "not_finite": 0}
    with pytest.raises(UsageError, match="nothing to judge a detector by"):
        evaluate_bundle(good, pictures)


def test_a_picture_answered_with_nan_counts_as_one_without_boxes(tmp_path: Path) -> None:
    bundle = squares.make_bundle(tmp_path / "broken.evb", nan=True)
    found = evaluate_bundle(bundle, squares.write_coco(tmp_path / "set"), batch_size=3)
    # the first picture of each of two batches
    assert (found.not_finite, found.n) == (2, 6)
    assert found.accuracy == pytest.approx(4 / 6, abs=0.01)


def test_the_session_keeps_its_own_thresholds(tmp_path: Path) -> None:
    with load(squares.make_bundle(tmp_path / "good.evb")) as session:
        before = session.postprocess
        evaluate(session, open_dataset(squares.write_coco(tmp_path / "set")), limit=2)
        assert session.postprocess is before
        judged = evaluation_postprocess(before)
        assert (judged.confidence, judged.iou, judged.multi_label, judged.max_detections) == (0.001, 0.65, True, 100)
        assert (judged.decoder, judged.options) == (before.decoder, before.options)


def test_boxes_survive_the_way_between_processes(tmp_path: Path) -> None:
    with load(squares.make_bundle(tmp_path / "good.evb")) as session:
        found = session.predict([squares.scene(squares.random_boxes(seed)) for seed in range(3)])
    again = from_plain(json.loads(json.dumps(plain(found, 0.25))))
    assert box_agreement(again, found, 0.25) == 1.0
    for one, other in zip(again, found, strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)
    assert box_agreement(again, found[:2], 0.25) is None
    assert box_agreement(found[:0], [], 0.25) == 1.0


def test_bench_shows_map_agreement_and_the_time_of_boxes(tmp_path: Path) -> None:
    good = squares.make_bundle(tmp_path / "good.evb", chatter=True)
    moved = squares.make_bundle(tmp_path / "moved.evb", precision="int8", shift=0.2)
    data = squares.write_coco(tmp_path / "set")
    report = bench([good, moved], f"coco:{data}", rounds=1, seconds=0.0, min_runs=2, batch_size=1)
    assert not report.errors
    exact, quantized = report.results
    assert (exact.accuracy, exact.metric, exact.map50, exact.agreement, exact.n) == (1.0, "mAP", 1.0, 1.0, 6)
    assert quantized.accuracy == pytest.approx(0.4, abs=0.05)
    assert (quantized.agreement, quantized.reference) == (1.0, str(good))
    # nothing scatters where all is found; moved boxes are found by the thresholds below their overlap in each draw
    assert exact.accuracy_ci95 == (1.0, 1.0)
    assert quantized.accuracy_ci95[0] <= quantized.accuracy <= quantized.accuracy_ci95[1]
    assert len(quantized.accuracy_resamples) == 200
    assert exact.pictures_sha256 == quantized.pictures_sha256 is not None
    for row in report.results:
        assert 0 < row.postprocess_ms["p50"] < row.end_to_end_ms["p50"]
    again = Report.from_dict(json.loads(json.dumps(report.to_dict())))
    assert again.results == report.results
    text = report.table()
    assert "mAP" in text
    assert "Top-1" not in text
    assert "100.0%" in text
    pytest.importorskip("jinja2", reason="Jinja2 is not installed: there is no page")
    assert "mAP, IoU 0.50 to 0.95" in html(report)
    # the same from an open data set, in this process
    direct = bench([good, moved], open_dataset(data), rounds=1, seconds=0.0, min_runs=2)
    assert [row.agreement for row in direct.results] == [1.0, 1.0]
    assert [row.accuracy for row in direct.results] == [row.accuracy for row in report.results]
    assert [row.accuracy_resamples for row in direct.results] == [row.accuracy_resamples for row in report.results]
    # the same pictures, with one object less
    document = json.loads(data.read_text())
    document["annotations"].pop()
    data.write_text(json.dumps(document))
    other = evaluate_bundle(good, data)
    assert other.pictures_sha256 != exact.pictures_sha256
    assert other.to_dict()["map_ci95"] == list(other.accuracy_ci95)


def test_a_report_of_detectors_and_classifiers_says_which_figure_is_whose() -> None:
    net = result("onnxruntime", "fp32", p50=3.0, right=400, model="net")
    detector = result("onnxruntime", "fp32", p50=9.0, right=400, model="detector")
    report = Report.single([net, replace(detector, metric="mAP", accuracy=0.412, accuracy_ci95=(0.38, 0.45))], {}, {})
    assert "Accuracy" in report.table()
    assert "41.2% ±3.8 mAP" in report.table()
    assert "top-1" in report.table()


def test_voc_folders_are_evaluated_too(tmp_path: Path) -> None:
    folder = tmp_path / "voc"
    squares.write_coco(folder, count=2, images="JPEGImages")
    (folder / "instances.json").unlink()
    (folder / "Annotations").mkdir()
    for number in range(2):
        objects = "".join(
            f"<object><name>{name}</name><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax>"
            f"<ymax>{box[3]}</ymax></bndbox></object>"
            for name, box in squares.random_boxes(number).items()
        )
        text = f"<annotation><filename>{number}.png</filename>{objects}</annotation>"
        (folder / "Annotations" / f"{number}.xml").write_text(text)
    found = evaluate_bundle(Bundle.open(squares.make_bundle(tmp_path / "good.evb")).path, f"voc:{folder}")
    assert (found.accuracy, found.n) == (1.0, 2)
