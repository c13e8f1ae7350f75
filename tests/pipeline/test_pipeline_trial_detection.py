"""A detector's plans are judged by mAP where the pictures have boxes, by agreement of boxes where they have none."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from edgevision.bundle import Bundle
from edgevision.data import open_dataset
from edgevision.pipeline.search import Budget
from edgevision.pipeline.trial import EngineTrials
from tests import squares

LAYERS = ("first", "second")


def trials(folder: Path, data: str) -> EngineTrials:
    def build(engine: str, nodes: frozenset[str]) -> Bundle:
        # each layer in integers moves the boxes by a tenth of their width
        shift = 0.1 * (len(LAYERS) - len(nodes))
        return Bundle.open(squares.make_bundle(folder / f"{len(nodes)}.evb", target=engine, shift=shift))

    return EngineTrials(
        "squares",
        LAYERS,
        build,
        lambda engine: build(engine, frozenset(LAYERS)),
        open_dataset(data),
        folder / "trials",
        Budget(math.inf),
    )


@pytest.fixture(autouse=True)
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    squares.register(tmp_path, monkeypatch)


def test_map_is_what_a_plan_loses(tmp_path: Path) -> None:
    pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed: mAP cannot be measured here")
    found = trials(tmp_path, f"coco:{squares.write_coco(tmp_path / 'set')}")
    assert (found.measure, found.pictures) == ("mAP", 6)
    assert found.drop(LAYERS) == 0.0
    # IoU 0.9 / 1.1 is above seven of the ten thresholds, 0.8 / 1.2 above four; small boxes move by whole pixels
    assert found.drop(["first"]) == pytest.approx(30, abs=5)
    assert found.drop([]) == pytest.approx(60, abs=5)


def test_without_boxes_agreement_is(tmp_path: Path) -> None:
    squares.write_coco(tmp_path / "set")
    found = trials(tmp_path, f"images:{tmp_path / 'set' / 'images'}")
    assert found.measure == "agreement"
    assert found.drop([]) == 0.0
