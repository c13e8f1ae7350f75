"""A chain whose network is a detector: stopped in every stage, killed in one, it ends as it would have ended."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from killed import Killed
from small_recipe import results, weights

from edgevision.bundle import Bundle
from edgevision.checkpoint import Checkpoint
from edgevision.errors import UsageError
from edgevision.recipe.identity import DataDigests, model_digest
from edgevision.recipe.report import read_summary
from edgevision.recipe.run import RecipeRun, plan_recipe, run_recipe
from edgevision.recipe.schema import parse_recipe
from edgevision.training.detection.loop import DetectorTrainer
from edgevision_benchmarks.report import Report
from edgevision_calibration.qat import train as qat
from tests.squares import write_coco

ANCHORS = [[10, 10], [14, 20], [20, 14], [30, 30], [40, 30], [60, 60]]
_TRAINING = {
    "batch_size": 4, "lr": 0.002, "optimizer": "adamw", "ema_decay": 0.0, "threads": 1, "workers": 0, "plots": False,
    "mosaic": 0.5, "scale": 0.1, "precision": "fp32",
}  # fmt: skip
_VALUES: dict[str, Any] = {
    "name": "squares",
    "report": {"rounds": 1, "seconds": 0.01, "min_runs": 2, "end_to_end": False},
    "model": {"name": "yolov3_tiny", "width": 0.1, "input_size": 64, "anchors": str(ANCHORS)},
    "stage": [
        {"name": "base", "kind": "train", "epochs": 2, **_TRAINING},
        {"name": "pruned", "kind": "prune", "macs": 0.7, "round_to": 1, "scope": "uniform", "epochs": 2,
         "target": "none", **_TRAINING},
        {"name": "distilled", "kind": "distill", "teacher": "base", "channelwise": ["head"], "epochs": 2, **_TRAINING},
        {"name": "qat", "kind": "quantize", "epochs": 1, "calibration_images": 16, "batch_size": 4},
        {"name": "int8", "kind": "convert", "targets": ["onnxruntime"], "precision": "int8"},
    ],
}  # fmt: skip


class Chain:
    """The chain run once, undisturbed."""

    def __init__(self, folder: Path) -> None:
        data = {part: f"coco:{write_coco(folder / part, count)}" for part, count in (("train", 16), ("val", 4))}
        self.values = {**_VALUES, "data": data}
        self.run: RecipeRun = run_recipe(self.recipe(), out=folder / "out")
        self.out = self.run.out

    def recipe(self, **changes: dict[str, Any]) -> dict[str, Any]:
        values = copy.deepcopy(self.values)
        for name, keys in changes.items():
            next(stage for stage in values["stage"] if stage["name"] == name).update(keys)
        return values


@pytest.fixture(scope="module")
def detector_chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return Chain(tmp_path_factory.mktemp("detector"))
    finally:
        torch.set_num_threads(before)


def test_a_detector_goes_through_every_stage(detector_chain: Chain) -> None:
    base, pruned, distilled = (Checkpoint.open(stage.folder) for stage in detector_chain.run.stages[:3])
    assert (base.task, base.classes, base.changes) == ("detection", ("red", "green", "blue"), ("trained",))
    # the priors are among the arguments that the network is built again with, pruned or not
    assert base.arguments["anchors"] == distilled.arguments["anchors"] == ANCHORS
    assert pruned.changes == ("trained", "pruned", "distilled")
    assert pruned.metrics["macs_ratio"] <= 0.7
    assert pruned.metrics["unpruned_map"] == base.metrics["map"]
    assert distilled.channels == pruned.channels != {}
    assert "train_teacher" in (detector_chain.out / "03-distilled" / "metrics.csv").read_text().splitlines()[0]
    bundle = Bundle.open(detector_chain.out / "05-int8" / "qat-onnxruntime-int8.evb")
    assert bundle.manifest.provenance["calibration"]["method"] == "qat"
    assert bundle.manifest.postprocess is not None
    assert [list(prior) for level in bundle.manifest.postprocess.options["anchors"] for prior in level] == [
        [float(side) for side in prior] for prior in [*ANCHORS[3:], *ANCHORS[:3]]
    ]
    assert detector_chain.run.failed_checks == []


def test_the_report_judges_by_map(detector_chain: Chain) -> None:
    folder = detector_chain.run.report
    assert folder is not None
    rows = Report.load(folder).results
    assert [(row.model, row.precision, row.metric) for row in rows] == [
        ("base", "fp32", "mAP"), ("pruned", "fp32", "mAP"), ("distilled", "fp32", "mAP"), ("qat", "int8", "mAP"),
    ]  # fmt: skip
    assert all(row.n == 4 for row in rows)
    assert [float(row["map"]) for row in read_summary(folder)] == [
        pytest.approx(100 * row.accuracy, abs=0.01) for row in rows
    ]
    assert "mAP" in (folder / "index.html").read_text()


def stopping(monkeypatch: pytest.MonkeyPatch, owner: Any, method: str, at: int) -> None:
    """Ctrl-C in the call of this number (from 1)."""
    original: Callable[..., Any] = getattr(owner, method)
    calls = [0]

    def stopped(self: Any, *arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == at:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(owner, method, stopped)


def test_stopped_in_every_stage_it_ends_with_the_same_weights(
    detector_chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    # in the second of two epochs of four steps, where what is resumed is more than nothing
    for stage, owner, method, at in (
        ("base", DetectorTrainer, "descend", 7),
        ("pruned", DetectorTrainer, "descend", 6),
        ("distilled", DetectorTrainer, "descend", 8),
        ("qat", qat._Run, "_step", 3),
    ):
        with monkeypatch.context() as patch:
            if stage != "base":  # what was stopped before is finished first
                run_recipe(detector_chain.recipe(), out=out, until=_before(stage))
            stopping(patch, owner, method, at)
            with pytest.raises(KeyboardInterrupt, match=f"stage '{stage}' stopped"):
                run_recipe(detector_chain.recipe(), out=out, until=stage)
    done = run_recipe(detector_chain.recipe(), out=out, until="qat")
    assert [stage.action for stage in done.stages] == ["skip", "skip", "skip", "resume"]
    whole = results(detector_chain.out)
    assert results(out) == {name: whole[name] for name in ("base", "pruned", "distilled", "qat")}


def _before(stage: str) -> str:
    names = [str(each["name"]) for each in _VALUES["stage"]]
    return names[names.index(stage) - 1]


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is a POSIX signal")
def test_killed_it_goes_on(detector_chain: Chain, tmp_path: Path) -> None:
    values = {key: value for key, value in detector_chain.recipe().items() if key != "report"}
    killed = Killed(tmp_path, values)
    assert killed.kill_in("pruned", 0.2)
    done = run_recipe(values, out=killed.out, until="pruned")
    assert [stage.action for stage in done.stages] == ["skip", "resume"]
    ours, theirs = weights(killed.out / "02-pruned"), weights(detector_chain.out / "02-pruned")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_second_call_does_nothing_and_other_boxes_begin_anew(detector_chain: Chain, tmp_path: Path) -> None:
    planned = plan_recipe(detector_chain.recipe(), out=detector_chain.out)
    assert [stage.action for stage in planned.stages] == ["skip"] * 6
    moved = write_coco(tmp_path / "data", 16)
    digests = DataDigests()
    before = digests.of(f"coco:{moved}", "train")
    text = moved.read_text()
    moved.write_text(text.replace('"bbox": [', '"bbox": [1.0, 1.0, 9.0, 9.0], "was": [', 1))
    after = DataDigests().of(f"coco:{moved}", "train")
    assert before["digest"] == after["digest"]
    assert before["labels"] != after["labels"]


@pytest.mark.parametrize(
    ("stage", "keys", "message"),
    [
        ("base", {"mosiac": 0.5}, "stage 'base': train: unknown key 'mosiac': did you mean mosaic"),
        ("base", {"cutmix": 1.0}, "stage 'base': train: unknown key 'cutmix'"),
        ("base", {"search_epochs": 1}, "stage 'base': train: unknown key 'search_epochs'"),
        ("pruned", {"mixup": 3.0}, "stage 'pruned': mixup must be between 0 and 1"),
        ("distilled", {"assigner": "tall"}, "stage 'distilled': unknown assigner 'tall': did you mean tal"),
        ("distilled", {"box_loss": "cio"}, "stage 'distilled': unknown box loss 'cio'"),
        ("distilled", {"alpha": 2}, "alpha is the teacher's share"),
    ],
)
def test_settings_are_those_of_detectors(stage: str, keys: dict[str, Any], message: str) -> None:
    values = {**copy.deepcopy(_VALUES), "data": {"train": "coco:none.json"}}
    next(each for each in values["stage"] if each["name"] == stage).update(keys)
    with pytest.raises(UsageError, match=message):
        parse_recipe(values)


def test_anchors_are_read_before_anything_runs(tmp_path: Path) -> None:
    values = {**copy.deepcopy(_VALUES), "data": {"train": "digits"}}
    path = tmp_path / "priors.json"
    values["model"]["anchors"] = str(path)
    with pytest.raises(UsageError, match="give a file with the output of edgevision priors"):
        parse_recipe(values)
    digests = []
    for side in (10, 11):
        path.write_text(str([[side, 10], *ANCHORS[1:]]))
        digests.append(model_digest(parse_recipe(values).model))
    assert digests[0] != digests[1]


def test_each_stage_knows_what_its_network_is_for(tmp_path: Path) -> None:
    values = {**copy.deepcopy(_VALUES), "data": {"train": "digits"}}
    values["stage"][1:] = [
        {"name": "other", "kind": "train", "model": {"name": "repvgg_tiny"}, "cutmix": 0.5},
        {"name": "small", "kind": "prune", "from": "base", "macs": 0.5, "close_mosaic": 1},
    ]
    found = parse_recipe(values)
    assert [stage.task for stage in found.stages] == ["detection", "classification", "detection", "detection"]
    values["stage"][1]["mosaic"] = 0.5
    with pytest.raises(UsageError, match="stage 'other': train: unknown key 'mosaic'"):
        parse_recipe(values)
