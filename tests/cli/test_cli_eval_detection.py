from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgevision.cli import main
from tests import squares

pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed: mAP cannot be measured here")

KEYS = ["map", "map50", "map75", "map_small", "map_medium", "map_large", "n"]


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    squares.register(tmp_path, monkeypatch)
    return str(squares.make_bundle(tmp_path / "squares.evb"))


def test_one_json_object_with_cocos_figures(bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = squares.write_coco(tmp_path / "set")
    assert main(["eval", bundle, "--data", f"coco:{data}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {key: found[key] for key in KEYS} == {
        "map": 1.0,
        "map50": 1.0,
        "map75": 1.0,
        "map_small": found["map_small"],
        "map_medium": found["map_medium"],
        # no rectangle has 96² pixels
        "map_large": None,
        "n": 6,
    }
    assert {found["map_small"], found["map_medium"]} <= {1.0, None}
    assert found["per_class"]["green"]["objects"] == 6


def test_pictures_may_lie_elsewhere(bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = squares.write_coco(tmp_path / "set")
    (tmp_path / "set" / "images").rename(tmp_path / "elsewhere")
    assert main(["eval", bundle, "--data", f"coco:{data}", "--json"]) == 1
    capsys.readouterr()
    options = ["--images", str(tmp_path / "elsewhere"), "--limit", "4", "--json"]
    assert main(["eval", bundle, "--data", f"coco:{data}", *options]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 4
    assert main(["eval", bundle, "--data", f"images:{tmp_path / 'elsewhere'}", "--images", str(tmp_path)]) == 2
    assert "--images" in capsys.readouterr().err


def test_people_get_a_table_and_are_told_of_bad_boxes(
    bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = squares.write_coco(tmp_path / "set")
    document = json.loads(path.read_text())
    document["annotations"] += [
        {"id": 500, "image_id": 0, "category_id": 7, "bbox": [5, 5, 0, 9], "iscrowd": 0},
        {"id": 501, "image_id": 0, "category_id": 7, "bbox": [500, 5, 9, 9], "iscrowd": 0},
    ]
    path.write_text(json.dumps(document))
    assert main(["eval", bundle, "--data", str(path)]) == 0
    captured = capsys.readouterr()
    assert "map            1.0000" in captured.out
    assert "class  objects     mAP   mAP50  recall" in captured.out
    assert "left out boxes: 1 without area, 1 outside their picture" in captured.err


def test_without_boxes_or_reference_there_is_nothing_to_judge_by(
    bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    squares.write_coco(tmp_path / "set")
    pictures = f"images:{tmp_path / 'set' / 'images'}"
    assert main(["eval", bundle, "--data", pictures]) == 2
    assert "nothing to judge a detector by" in capsys.readouterr().err
    assert main(["eval", bundle, "--data", pictures, "--reference", bundle, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["agreement"] == 1.0


def test_a_class_number_out_of_range_names_the_file(
    bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = squares.write_coco(tmp_path / "set")
    document = json.loads(path.read_text())
    document["annotations"][0]["category_id"] = 99
    path.write_text(json.dumps(document))
    assert main(["eval", bundle, "--data", str(path)]) == 1
    assert f"{path}: annotation 1: category_id 99" in capsys.readouterr().err
