from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from edgevision.cli import main


@pytest.fixture
def boxes(tmp_path: Path) -> str:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (104, 52)).save(tmp_path / "images" / "a.png")
    annotations = [
        {"id": n, "image_id": 1, "category_id": 7, "bbox": [2, 3, 4 + n, 2 * (4 + n)], "area": 1, "iscrowd": 0}
        for n in range(12)
    ]
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": 104, "height": 52}],
        "annotations": annotations,
        "categories": [{"id": 7, "name": "thing"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(document))
    return f"coco:{tmp_path / 'instances.json'}"


def test_priors_are_printed_and_the_same_each_time(boxes: str, capsys: pytest.CaptureFixture[str]) -> None:
    documents = []
    for _ in range(2):
        assert main(["priors", boxes, "--count", "3", "--size", "416", "--seed", "4", "--json"]) == 0
        documents.append(json.loads(capsys.readouterr().out))
    assert documents[0] == documents[1]
    found = documents[0]
    assert found["size"] == [416, 416]
    assert found["boxes"] == 12
    assert len(found["priors"]) == len(found["shares"]) == 3
    # 104 pixels become 416, and every box is twice as high as it is wide
    assert all(h == pytest.approx(2 * w, abs=0.11) for w, h in found["priors"])
    assert sum(found["shares"]) == pytest.approx(1)
    assert found["priors"] == sorted(found["priors"])


def test_a_person_gets_a_table_and_a_line_to_copy(boxes: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["priors", boxes, "--count", "2", "--size", "208x416"]) == 0
    out = capsys.readouterr().out
    assert "12 boxes in 208 × 416 pixels" in out
    anchors = json.loads(out.splitlines()[-1].removeprefix("anchors="))
    assert len(anchors) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [(["--count", "0"], 2, "at least 1"), (["--count", "13"], 1, "different box sizes"), (["--seed", "-1"], 2, "seed")],
)
def test_what_cannot_be_is_refused(
    boxes: str, arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["priors", boxes, *arguments]) == code
    assert message in capsys.readouterr().err
