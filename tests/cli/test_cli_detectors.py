"""Verbs that train, of detectors: ``train --anchors``, ``distill``, ``prune``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgevision.checkpoint import Checkpoint
from edgevision.errors import UsageError
from edgevision.pipeline.networks import read_anchors
from tests.cli.conftest import call
from tests.squares import write_coco

PRIORS = [[8.0, 9.0], [12.0, 10.0], [16.0, 14.0], [20.0, 18.0], [30.0, 28.0], [40.0, 36.0]]
SHORT = ("--epochs", 1, "--batch-size", 4)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that do not lie beside their annotations, priors, and a trained detector."""
    root = tmp_path_factory.mktemp("detectors")
    # every tenth picture validates
    write_coco(root / "train", 10)
    (root / "train" / "images").rename(root / "train" / "elsewhere")
    (root / "priors.json").write_text(json.dumps({"priors": PRIORS, "size": [64, 64]}))
    (root / "settings.toml").write_text(
        'plots = false\nmosaic = 0.0\nthreads = 1\nworkers = 0\nbatch_size = 4\nprecision = "fp32"\n'
    )
    outcome = call(
        "train", "yolov3_tiny", "--width", 0.1, "--input-size", 64, "--anchors", root / "priors.json", *SHORT,
        *data(root), "-o", root / "teacher", "--seed", 3, "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    return root


def data(root: Path) -> tuple[object, ...]:
    return (
        "--data", f"coco:{root / 'train' / 'instances.json'}", "--images", root / "train" / "elsewhere",
        "--config", root / "settings.toml",
    )  # fmt: skip


def test_priors_of_ones_own_are_kept_in_the_checkpoint(shop: Path) -> None:
    trained = Checkpoint.open(shop / "teacher")
    assert trained.arguments["anchors"] == PRIORS
    assert trained.postprocess is not None
    assert trained.postprocess.options["anchors"] == [PRIORS[3:], PRIORS[:3]]
    assert trained.build().head.anchors[1] == [tuple(prior) for prior in PRIORS[:3]]
    outcome = call("train", shop / "teacher", "--anchors", str(PRIORS), *data(shop), "-o", shop / "other")
    assert (outcome.code, "is a Checkpoint and has its own" in outcome.err) == (2, True)
    outcome = call("train", "yolov6_n", "--anchors", str(PRIORS), "--input-size", 64, *data(shop), "-o", shop / "other")
    assert (outcome.code, "anchors" in outcome.err) == (2, True)


def test_a_student_takes_size_and_priors_of_its_teacher(shop: Path, tmp_path: Path) -> None:
    command = ("yolov3_tiny", "--width", 0.1, "--teacher", shop / "teacher", "--channelwise", "head", *SHORT)
    outcome = call("distill", *command, *data(shop), "-o", tmp_path / "student", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.document["changes"] == ["distilled"]
    assert "map50" in outcome.document["metrics"]
    student = Checkpoint.open(tmp_path / "student")
    assert (student.arguments["input_size"], student.arguments["anchors"]) == (64, PRIORS)
    outcome = call("distill", "yolov6_n", "--width", 0.1, "--teacher", shop / "teacher", *SHORT, *data(shop), "-o",
                   tmp_path / "other")  # fmt: skip
    assert outcome.code == 1
    assert "a teacher with another head: yolov3_tiny has one of the kind yolov3, the student yolov6" in outcome.err
    assert not (tmp_path / "other").exists()


def test_a_detector_is_pruned_by_what_its_boxes_lose(shop: Path, tmp_path: Path) -> None:
    command = (shop / "teacher", "--macs", 0.7, "--round-to", 4, "--epochs", 1, "--target", "none")
    outcome = call("prune", *command, *data(shop), "-o", tmp_path / "pruned", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.document["metrics"]["macs_ratio"] <= 0.7
    assert "map" in outcome.document["metrics"]
    assert Checkpoint.open(tmp_path / "pruned").changes == ("trained", "pruned", "distilled")
    bad = tmp_path / "bad.toml"
    bad.write_text("cutmix = 1.0\n")
    outcome = call("prune", *command, "--data", "digits", "--config", bad, "-o", tmp_path / "x")
    assert (outcome.code, "unknown training key 'cutmix'" in outcome.err) == (2, True)


def test_a_detectors_groups_are_measured(shop: Path, tmp_path: Path) -> None:
    outcome = call("prune", shop / "teacher", "--sensitivity", *data(shop)[:4], "--pictures", 4, "--ratios", 0.5,
                   "-o", tmp_path, "--json")  # fmt: skip
    assert outcome.code == 0, outcome.err
    cuts = outcome.document["cuts"]
    assert len(cuts) == 11
    assert all(cut["error"] > 0 and cut["accuracy"] is None for cut in cuts)


@pytest.mark.parametrize(
    "text",
    [
        "[[8, 9], [12.5, 10]]",
        "  [[8, 9], [12.5, 10]]\n",
        '{"priors": [[8, 9], [12.5, 10]], "size": [64, 64], "boxes": 3}',
        "width  height\n8.0  9.0\n3 boxes in 64 x 64 pixels\nanchors=[[8.0, 9.0], [12.5, 10.0]]\n",
    ],
)
def test_anchors_are_read_from_what_the_command_printed(tmp_path: Path, text: str) -> None:
    (tmp_path / "priors").write_text(text)
    assert read_anchors(str(tmp_path / "priors"), 64) == [[8.0, 9.0], [12.5, 10.0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no/such/file", "give a file with the output of edgevision priors"),
        ("[[1, 2], [3]]", "are no pairs of width and height"),
        ("[]", "are no pairs of width and height"),
        ("[[1, 2", "give a file with the output"),
    ],
)
def test_other_texts_are_no_anchors(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_anchors(text, 64)


def test_priors_of_another_input_are_refused(shop: Path) -> None:
    with pytest.raises(UsageError, match=r"an input of 64 x 64 pixels, the network's is 96: .*--size 96"):
        read_anchors(str(shop / "priors.json"), 96)
