"""``edgevision distill``, and ``edgevision train`` that goes on from a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edgevision.checkpoint import Checkpoint
from edgevision.models import create_model
from edgevision.preprocess import PRESETS
from tests.cli.conftest import call

PREPROCESS = PRESETS["unit"].with_size(16, 16)
SHORT = ("--epochs", 1, "--batch-size", 8, "--seed", 1)


def checkpoint(name: str = "repvgg_tiny", width: float = 0.5, **kwargs: Any) -> Checkpoint:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model(name, num_classes=2, input_size=16, width=width)
    arguments = {"classes": ("dark", "light"), "changes": ("trained",), "metrics": {"top1": 0.75}, **kwargs}
    return Checkpoint.from_model(model, preprocess=PREPROCESS, **arguments)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of two classes, a teacher and a smaller student."""
    root = tmp_path_factory.mktemp("shop")
    generator = np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 3)):
        for name, low in (("dark", 0), ("light", 128)):
            folder = root / "data" / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(low, low + 128, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    checkpoint().save(root / "teacher")
    checkpoint(width=0.25, changes=("trained", "pruned")).save(root / "student")
    return root


def distilled(shop: Path, student: object, out: Path, *more: object) -> Any:
    data = ("--data", f"folder:{shop / 'data'}", "-o", out)
    return call("distill", student, "--teacher", shop / "teacher", *data, *SHORT, *more, "--json")


def test_a_checkpoint_learns_from_a_checkpoint(shop: Path, tmp_path: Path) -> None:
    layers = ("--features", "stage1.0,stage2.0=stage2.1", "--channelwise", "stage1.0", "--temperature", 2)
    outcome = distilled(shop, shop / "student", tmp_path / "out", *layers, "--alpha", 0.7)
    assert outcome.code == 0, outcome.err
    found = outcome.document
    assert set(found) == {"checkpoint", "changes", "metrics", "teacher"}
    assert found["changes"] == ["trained", "pruned", "distilled"]
    assert found["teacher"] == {"source": str(shop / "teacher"), "metrics": {"top1": 0.75}}
    assert set(found["metrics"]) == {"top1", "loss", "epoch"}
    kept = Checkpoint.open(found["checkpoint"])
    assert kept.arguments["width"] == 0.25
    assert kept.classes == ("dark", "light")
    kept.build()
    lesson = json.loads((tmp_path / "out" / "config.json").read_text())["distill"]
    assert lesson["features"] == [["stage1.0", "stage1.0"], ["stage2.0", "stage2.1"]]
    assert (lesson["alpha"], lesson["temperature"], lesson["feature_weight"]) == (0.7, 2.0, 1.0)
    again = distilled(shop, shop / "student", tmp_path / "out", *layers, "--alpha", 0.7)
    assert again.document == found


def test_a_network_of_the_zoo_takes_its_input_from_its_teacher(shop: Path, tmp_path: Path) -> None:
    outcome = call(
        "distill", "mobilenet_v1", "--width", 0.25, "--teacher", shop / "teacher", "--data", f"folder:{shop / 'data'}",
        *SHORT, "-o", tmp_path / "out",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "; teacher: top1 0.75" in outcome.out
    assert f"next: edgevision convert {tmp_path / 'out'}" in outcome.out
    kept = Checkpoint.open(tmp_path / "out")
    assert (kept.arguments["input_size"], kept.preprocess) == (16, PREPROCESS)
    assert kept.changes == ("distilled",)


def test_a_teacher_by_name_has_the_students_size_and_its_own_width(shop: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    torch.save(dict(checkpoint().weights), weights)
    arguments = ["distill", shop / "student", "--teacher", "repvgg_tiny", "--teacher-weights", weights, "--data",
                 f"folder:{shop / 'data'}", *SHORT, "-o", tmp_path / "out"]  # fmt: skip
    outcome = call(*arguments)
    assert outcome.code == 1
    assert "weights do not fit the network" in outcome.err
    outcome = call(*arguments, "--teacher-width", 0.5)
    assert outcome.code == 0, outcome.err
    assert "teacher:" not in outcome.out  # weights alone tell no metrics


def test_training_goes_on_from_a_checkpoint(shop: Path, tmp_path: Path) -> None:
    arguments = ("train", "--model", shop / "student", "--data", f"folder:{shop / 'data'}", *SHORT)
    outcome = call(*arguments, "-o", tmp_path / "out", "--json")
    assert outcome.code == 0, outcome.err
    kept = Checkpoint.open(outcome.document["checkpoint"])
    assert kept.changes == ("trained", "pruned", "trained")
    assert kept.preprocess == PREPROCESS
    refused = call(*arguments, "-o", tmp_path / "out", "--width", 0.5)
    assert refused.code == 2
    assert "is a Checkpoint and has its own: --width" in refused.err
    refused = call(*arguments, "-o", shop / "student")
    assert refused.code == 2
    assert "holds the network to begin with" in refused.err


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--features", "stage9"], 2, "unknown layer of the student 'stage9': did you mean stage"),
        (["--channelwise", "stage1.0=stage9"], 2, "unknown layer of the teacher 'stage9'"),
        (["--temperature", 0], 2, "temperature must be above 0; got 0"),
        (["--alpha", 0], 2, "teaches nothing"),
        (["--teacher-weights", "w.pt"], 2, "this teacher has its own"),
        (["--width", 0.5], 2, "this student has its own"),
        (["--input-size", "16x32"], 2, "--input-size SIZE"),
    ],
)
def test_mistakes_are_told_in_one_line(shop: Path, tmp_path: Path, more: list[object], code: int, message: str) -> None:
    outcome = distilled(shop, shop / "student", tmp_path / "out", *more)
    assert outcome.code == code
    assert message in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    assert not (tmp_path / "out" / "config.json").exists()


def test_a_teacher_with_other_classes_is_named(shop: Path, tmp_path: Path) -> None:
    checkpoint(classes=("cat", "dog")).save(tmp_path / "teacher")
    data = ("--data", f"folder:{shop / 'data'}")
    student = ("distill", shop / "student", "--teacher", tmp_path / "teacher")
    outcome = call(*student, *data, *SHORT, "-o", tmp_path / "out")
    assert outcome.code == 1
    assert "a teacher with other classes: repvgg_tiny knows 2 classes (cat, dog)" in outcome.err
    assert "the student is to learn 2 classes (dark, light); class 0 is 'cat' there and 'dark' here" in outcome.err
    outcome = call(*student, *data, *SHORT, "-o", tmp_path / "out", "--alpha", 0, "--features", "stage1.0")
    assert outcome.code == 0, outcome.err


def test_what_is_no_student_or_no_teacher_is_told(shop: Path, tmp_path: Path) -> None:
    outcome = distilled(shop, tmp_path / "absent", tmp_path / "out")
    assert outcome.code == 2
    assert "no student: expected a Checkpoint folder" in outcome.err
    outcome = distilled(shop, shop / "teacher", shop / "teacher")
    assert outcome.code == 2
    assert "holds the student" in outcome.err
    outcome = call("distill", shop / "student", "--teacher", tmp_path, "--data", f"folder:{shop / 'data'}", "-o",
                   tmp_path / "out")  # fmt: skip
    assert outcome.code == 2
    assert "no teacher: expected a Checkpoint folder" in outcome.err
