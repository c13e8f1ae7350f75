from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgevision.cli import main
from tests import squares

# what the stand-in gives, but for a class that nobody names twice
OWN = """
from pathlib import Path

from edgevision.detection.decoders.yolov8 import decode

Path(__file__).with_suffix(".ran").touch()
NUMBER = 3


def backwards(outputs, size, *, confidence, multi_label, **options):
    found = decode(outputs, size, confidence=confidence, multi_label=multi_label)
    return [type(one)(one.boxes, one.scores, 2 - one.labels) for one in found]
"""


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    squares.register(tmp_path, monkeypatch)
    return str(squares.make_bundle(tmp_path / "own.evb", decoder="own:backwards"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path / "own.py"


@pytest.fixture
def photo(tmp_path: Path) -> str:
    squares.scene(squares.random_boxes(0)).save(tmp_path / "0.png")
    return str(tmp_path / "0.png")


@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_predict_reads_outputs_by_the_function_that_is_named(
    bundle: str, file: Path, photo: str, capsys: pytest.CaptureFixture[str], stream: list[str]
) -> None:
    assert main(["predict", bundle, photo, "--json", "--decoder", f"{file}:backwards", *stream]) == 0
    objects = json.loads(capsys.readouterr().out)["objects"]
    boxes = squares.random_boxes(0)
    expected = {"red": boxes["blue"], "green": boxes["green"], "blue": boxes["red"]}
    assert {found["name"]: tuple(found["box"]) for found in objects} == expected


def test_eval_judges_what_the_function_reads(
    bundle: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed: mAP cannot be measured here")
    data = squares.write_coco(tmp_path / "set")
    assert main(["eval", bundle, "--data", f"coco:{data}", "--json", "--decoder", f"{file}:backwards"]) == 0
    per_class = json.loads(capsys.readouterr().out)["per_class"]
    # red and blue are taken for each other
    assert per_class["green"]["map"] == 1.0
    assert per_class["red"]["map"] < 0.5


def test_no_file_is_run_that_is_not_named(
    bundle: str, file: Path, photo: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # the bundle says own:backwards, and own.py lies where Python would find it
    monkeypatch.chdir(file.parent)
    monkeypatch.syspath_prepend(str(file.parent))
    assert main(["predict", bundle, photo]) == 2
    assert "--decoder FILE.py:backwards" in capsys.readouterr().err
    assert not file.with_suffix(".ran").exists()


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("own:backwards", "expected FILE.py:FUNCTION"),
        ("own.py", "expected FILE.py:FUNCTION"),
        ("missing.py:backwards", "no such file: missing.py"),
        ("own.py:forwards", "own.py has no function forwards"),
        ("own.py:NUMBER", "own.py has no function NUMBER"),
        ("broken.py:backwards", "running broken.py failed: ZeroDivisionError"),
    ],
)
def test_a_wrong_name_or_file_is_told(
    bundle: str,
    file: Path,
    photo: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    named: str,
    message: str,
) -> None:
    monkeypatch.chdir(file.parent)
    Path("broken.py").write_text("1 / 0")
    assert main(["predict", bundle, photo, "--decoder", named]) == 2
    assert message in capsys.readouterr().err
