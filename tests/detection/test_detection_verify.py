"""`verify` of a detector compares its boxes, not its numbers alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgevision.bundle import Bundle, Manifest, Thresholds
from edgevision.cli import main
from edgevision.detection.compare import boxes_of
from edgevision.detection.postprocess import Postprocess
from edgevision.parity import verify
from edgevision.pipeline.golden import box_thresholds
from edgevision.preprocess import Preprocess
from tests import squares

# of the tensors: so low that they never decide
LOOSE = Thresholds(cosine=-1.0, sqnr_db=-150.0)
DEMANDING = replace(LOOSE, matched=0.9, mean_iou=0.9)


@pytest.fixture(autouse=True)
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    squares.register(tmp_path, monkeypatch)


def make(path: Path, *, thresholds: Thresholds | None = DEMANDING, **behaviour: object) -> Path:
    limits = {} if thresholds is None else {"fp32": thresholds, "reference": thresholds}
    return squares.make_bundle(path, golden=4, reference=True, thresholds=limits, **behaviour)


def test_an_engine_that_answers_as_the_reference_passes(tmp_path: Path) -> None:
    found = verify(make(tmp_path / "good.evb"))
    assert found.passed
    for compared in found.detections.values():
        assert (compared.expected, compared.actual, compared.matched, compared.score_difference) == (12, 12, 1.0, 0.0)
    assert set(found.detections) == {"fp32", "reference"}
    json.dumps(found.to_dict(), allow_nan=False)


def test_boxes_that_moved_fail(tmp_path: Path) -> None:
    found = verify(make(tmp_path / "moved.evb", shift=0.2))
    assert not found.passed
    assert found.detections["fp32"].matched == 1.0
    assert found.detections["fp32"].mean_iou == pytest.approx(2 / 3, abs=0.05)


@pytest.mark.parametrize("thresholds", [DEMANDING, LOOSE, None])
def test_an_engine_whose_scores_are_all_zero_fails_whatever_is_demanded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], thresholds: Thresholds | None
) -> None:
    path = make(tmp_path / "zero.evb", thresholds=thresholds, scores=0.0)
    assert main(["verify", str(path)]) == 3
    printed = capsys.readouterr().out
    assert "parity FAILS" in printed
    assert (
        "NO SCORE SURVIVES: the reference found 12 boxes and its best score is 0.900; the engine's best is 0.000"
        in printed
    )


def test_lower_scores_alone_do_not_fail(tmp_path: Path) -> None:
    found = verify(make(tmp_path / "unsure.evb", thresholds=replace(DEMANDING, cosine=-1.0), scores=0.5))
    assert found.passed
    assert found.detections["fp32"].score_difference == pytest.approx(0.4, abs=0.01)


def test_a_bundle_that_demands_nothing_of_boxes_is_judged_by_its_tensors(tmp_path: Path) -> None:
    found = verify(make(tmp_path / "moved.evb", thresholds=LOOSE, shift=0.2))
    assert found.passed
    assert found.detections["fp32"].limits is None


def test_nan_is_no_box_and_fails(tmp_path: Path) -> None:
    found = verify(make(tmp_path / "nan.evb", nan=True))
    assert not found.passed
    # the engine is called picture by picture, and spoils the first of each call
    assert found.detections["fp32"].actual == 0


def test_the_table_tells_what_was_found_and_demanded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(make(tmp_path / "good.evb"))]) == 0
    printed = capsys.readouterr().out.splitlines()
    [row] = [line for line in printed if line.startswith("boxes of FP32")]
    assert " ".join(row.split()) == "boxes of FP32 12 12 1.0000 1.0000 0.0000 matched 0.900, IoU 0.900"
    assert main(["verify", str(make(tmp_path / "moved.evb", shift=0.2)), "--json"]) == 3
    answer = json.loads(capsys.readouterr().out)
    assert answer["detections"]["reference"]["matched"] == 1.0
    assert answer["detections"]["reference"]["passed"] is False


def test_golden_pictures_without_objects_are_said_to_prove_little(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = squares.make_bundle(tmp_path / "blind.evb", golden=2, postprocess={"confidence": 0.95})
    assert main(["verify", str(path)]) == 0
    assert "no golden picture holds a box above the confidence" in capsys.readouterr().out


def test_a_decoder_of_ones_own_that_was_not_passed_compares_tensors(tmp_path: Path) -> None:
    path = make(tmp_path / "good.evb")
    opened = Bundle.open(path)
    own = replace(opened.manifest, postprocess=Postprocess("mine:decode"))
    assert verify(Bundle(own, {name: opened.read(name) for name in opened.files})).detections == {}


def outputs(scores: list[float], shift: float = 0.0) -> dict[str, np.ndarray]:
    """One picture with a box of 20 by 20 pixels for each score, in a row."""
    count = sum((squares.SIZE // stride) ** 2 for stride in (8, 16, 32))
    values = np.zeros((1, 7, count), np.float32)
    for index, score in enumerate(scores):
        values[0, :4, index] = 30 * index + 12 + shift, 12, 20, 20
        values[0, 4 + index, index] = score
    return {"output0": values}


PREPROCESS = Preprocess((squares.SIZE, squares.SIZE), "letterbox")
PLAIN = {"fp32": LOOSE, "reference": LOOSE}


def demanded(precision: str, **groups: dict[str, np.ndarray]) -> dict[str, tuple[float | None, float | None]]:
    found = box_thresholds(PLAIN, Postprocess("yolov8"), PREPROCESS, groups, precision)
    return {key: (value.matched, value.mean_iou) for key, value in found.items()}


def test_what_is_demanded_follows_from_what_the_plan_keeps() -> None:
    exact = outputs([0.9, 0.8])
    limits = demanded("int8", outputs=exact, reference=exact)
    # four boxes on both sides together, two of which may differ
    assert limits["fp32"] == limits["reference"] == (0.5, pytest.approx(0.98))
    # the plan's boxes overlap by 18 / 22 of FP32's
    moved = demanded("int8", outputs=exact, reference=outputs([0.9, 0.8], shift=2.0))
    assert moved["fp32"] == (0.5, pytest.approx(max(0.6, 1 - 2 * (1 - 18 / 22) - 0.02)))
    # a plan that lost its scores does not lower what is demanded to nothing
    assert demanded("int8", outputs=exact, reference=outputs([0.0, 0.0]))["fp32"] == (0.5, 0.6)


def test_float_bundles_must_keep_nearly_all() -> None:
    exact = outputs([0.9, 0.8])
    assert demanded("fp32", outputs=exact)["fp32"] == (pytest.approx(0.48), 0.98)
    # shared weights: FP32's boxes change by them, and the engine computes just what the reference does
    limits = demanded("fp32", outputs=exact, reference=outputs([0.9, 0.8], shift=2.0))
    assert limits["fp32"][1] < 0.7
    assert limits["reference"][1] == 0.98


def test_nothing_is_demanded_where_nothing_is_found() -> None:
    assert demanded("int8", outputs=outputs([0.1]), reference=outputs([0.1])) == {
        "fp32": (None, None),
        "reference": (None, None),
    }


def test_boxes_are_told_in_pixels_of_the_input_far_below_the_confidence() -> None:
    [found] = boxes_of(Postprocess("yolov8"), PREPROCESS, outputs([0.9, 0.004]))
    np.testing.assert_allclose(found.boxes, [[2, 2, 22, 22], [32, 2, 52, 22]])


def test_thresholds_of_boxes_are_stored_only_where_there_are_some(tmp_path: Path) -> None:
    manifest = Bundle.open(make(tmp_path / "good.evb")).manifest
    assert Manifest.from_dict(manifest.to_dict()).thresholds["fp32"] == DEMANDING
    assert LOOSE.to_dict() == {"cosine": -1.0, "sqnr_db": -150.0, "top1_agreement": None}
