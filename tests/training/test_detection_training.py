"""Runs of a detector."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from detection_run import CLASSES, EVERYTHING, SIZE, small_detector, squares, write_coco

from edgevision.checkpoint import Checkpoint
from edgevision.cli import main as command_line
from edgevision.data import Subset, open_dataset
from edgevision.detection.evaluation import mean_average_precision
from edgevision.errors import DataError, MissingDependencyError, TrainingError, UsageError
from edgevision.images import read_image
from edgevision.training import TrainConfig, train
from edgevision.training.detection import loop, plots
from edgevision.training.detection.config import RECIPES, DetectionConfig, recipe_for_boxes, usual_detector_size
from edgevision.training.detection.loop import DetectorTrainer, activation_layout, compute_dtype
from edgevision.training.detection.run import COLUMNS, detection_preprocess, open_detection_parts, validation_beside
from edgevision.training.detection.source import TrainingPictures
from edgevision.training.distributed import Processes
from edgevision.training.loop import breaks_channels_last

BRIEF = DetectionConfig(
    epochs=1, batch_size=4, lr=0.01, warmup_epochs=0, ema_decay=0, close_mosaic=0, precision="fp32", plots=False
)
FULL = DetectionConfig.from_dict(EVERYTHING)


def run(folder: Path, config: DetectionConfig = BRIEF, model: Any = None, **kwargs: Any) -> tuple[Checkpoint, Any]:
    model = small_detector() if model is None else model
    data = folder.parent / "data"
    arguments: dict[str, Any] = {"data": squares(data), "val_data": squares(data / "val", 4, seed=1), **kwargs}
    return train(model, out=folder, config=config, **arguments), model


def same_bits(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def rows(folder: Path) -> list[dict[str, Any]]:
    timing = ("seconds", "images_per_second")
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in timing} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Checkpoint]:
    """An undisturbed run of everything."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, run(folder, FULL)[0]


def test_a_run_learns_to_find_squares(tmp_path: Path) -> None:
    config = replace(
        BRIEF, epochs=18, lr=0.004, optimizer="adamw", momentum=0.9, mosaic=0.3, scale=0.2, hue=0.0, saturation=0.1,
        value=0.1, validate_every=6, assigner_warmup=2, ema_decay=0.9, plots=True,
    )  # fmt: skip
    checkpoint, _ = run(tmp_path / "run", config)
    history = rows(tmp_path / "run")
    # two colours on grey; a network that has learned nothing is below 0.05
    assert checkpoint.metrics["map50"] > 0.3
    assert history[-1]["train_loss"] < 0.9 * history[0]["train_loss"]
    assert [row["epoch"] for row in history if row["map"] is not None] == [6, 12, 18]
    assert (checkpoint.task, checkpoint.classes, checkpoint.changes) == ("detection", CLASSES, ("trained",))
    assert checkpoint.preprocess.resize == "letterbox"
    with (tmp_path / "run" / "metrics.csv").open() as stream:
        assert tuple(next(csv.reader(stream))) == COLUMNS
    drawn = {path.name: read_image(path).size for path in (tmp_path / "run").glob("*.[jp][pn]g")}
    assert set(drawn) == {
        "train_batch0.jpg", "labels.png", "val_batch0.jpg", "pr_curve.png", "confusion_matrix.png", "results.png"
    }  # fmt: skip
    assert drawn["train_batch0.jpg"] == (3 * SIZE, 3 * SIZE)
    _check_kept_map(checkpoint, tmp_path / "data" / "val")


def _check_kept_map(checkpoint: Checkpoint, folder: Path) -> None:
    """The mAP that was kept is what the deployed preprocess and decoding give."""
    data = squares(folder, 4, seed=1)
    assert checkpoint.postprocess is not None
    postprocess = replace(checkpoint.postprocess, confidence=0.001, iou=0.65, multi_label=True, max_detections=100)
    network = checkpoint.build()
    found = []
    for sample in data:
        image = read_image(sample.image)
        with torch.no_grad():
            outputs = network(torch.from_numpy(checkpoint.preprocess(image))[None])
        maps = {name: value.numpy() for name, value in outputs.items()}
        found += postprocess(maps, (SIZE, SIZE), [checkpoint.preprocess.placement(*image.size)], CLASSES)
    judged = mean_average_precision(data.boxes, found, 2)
    # one by one and four at a time, convolutions round differently: a box may pass a threshold of IoU
    assert judged.map50 == pytest.approx(checkpoint.metrics["map50"], abs=0.02)


def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path, whole: tuple[Path, Checkpoint]) -> None:
    out = tmp_path / "run"
    command = [sys.executable, __file__.replace("test_detection_training", "detection_run"), str(out)]
    # in the middle of the third epoch of three steps each
    done = subprocess.run([*command, str(tmp_path / "data"), "8"], timeout=300, check=False, env={
        **os.environ, "PYTHONPATH": str(Path(__file__).parents[2])})  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    assert not (out / "state" / "finished.json").exists()
    assert len(rows(out)) == 2
    # other first weights: what was learned comes from the saved state
    checkpoint, _ = run(out, FULL, small_detector(seed=9))
    assert same_bits(dict(checkpoint.weights), dict(whole[1].weights))
    assert rows(out) == rows(whole[0])


def test_a_stopped_run_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(DetectorTrainer, "descend", _interrupted)
        with pytest.raises(KeyboardInterrupt, match="run the same command again to go on"):
            run(tmp_path / "run")
    assert run(tmp_path / "run")[0].metrics["epoch"] == 1
    monkeypatch.setattr(DetectorTrainer, "train_epoch", lambda *_: pytest.fail("trained again"))
    assert run(tmp_path / "run")[0].metrics["epoch"] == 1  # a finished run is reused


def _interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def test_threads_that_read_ahead_change_nothing(tmp_path: Path) -> None:
    config = replace(FULL, epochs=2, close_mosaic=0)
    one, two = (run(tmp_path / str(workers), replace(config, workers=workers))[0] for workers in (0, 3))
    assert same_bits(dict(one.weights), dict(two.weights))


def test_other_classes_renew_the_last_layers_alone(
    tmp_path: Path, whole: tuple[Path, Checkpoint], capsys: pytest.CaptureFixture[str]
) -> None:
    data = squares(tmp_path / "three", classes=("red", "blue", "green"))
    held = tmp_path / "held"
    begun = dict(whole[1].weights)
    # one step so small that nothing moves
    config = replace(BRIEF, lr=1e-12, momentum=0.0, nesterov=False, weight_decay=0.0, warmup_epochs=0)
    checkpoint = train(whole[0], data, val_data=data, out=held, config=config)
    told = capsys.readouterr().err
    assert "the checkpoint knows 2 classes, squares:0 has 3: begun anew are " in told
    assert checkpoint.classes == ("red", "blue", "green")
    assert checkpoint.arguments["num_classes"] == 3
    renewed = {name for name, value in checkpoint.weights.items() if value.shape != begun[name].shape}
    assert renewed
    for name in renewed:
        assert checkpoint.weights[name].shape[0] == 3
        assert name.rpartition(".")[0] in told
    for name, value in checkpoint.weights.items():
        if name not in renewed and value.is_floating_point() and "running" not in name:
            torch.testing.assert_close(value, begun[name], atol=1e-6, rtol=0)
    again = train(whole[0], data, val_data=data, out=held, config=config)
    assert same_bits(dict(again.weights), dict(checkpoint.weights))


def test_as_many_classes_go_on_whole(
    tmp_path: Path, whole: tuple[Path, Checkpoint], capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, _ = run(tmp_path / "run", replace(BRIEF, lr=1e-12), whole[0])
    assert "begun anew" not in capsys.readouterr().err
    assert checkpoint.changes == ("trained",)
    with pytest.raises(DataError, match=r"has 2 classes, the network 1; create it with num_classes=2"):
        run(tmp_path / "other", model=small_detector(1))


def test_what_does_not_go_together_is_refused(tmp_path: Path, whole: tuple[Path, Checkpoint]) -> None:
    data = squares(tmp_path / "data")
    with pytest.raises(UsageError, match="a detector's settings are a DetectionConfig; got a TrainConfig"):
        train(small_detector(), data, out=tmp_path / "run", config=TrainConfig())
    with pytest.raises(TrainingError, match="is another run's: config"):
        run(whole[0], replace(FULL, mosaic=0.5))
    with pytest.raises(DataError, match="both must have the same in the same order"):
        train(small_detector(), data, val_data=squares(tmp_path / "v", 3, classes=("blue", "red")), out=tmp_path / "r")
    with pytest.raises(TrainingError, match="the loss became"):
        run(tmp_path / "run", replace(BRIEF, lr=1e6, grad_clip=0.0, epochs=3))


def test_without_validation_data_some_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_coco(squares(tmp_path / "images", 25), tmp_path / "instances_train.json")
    training, validation = open_detection_parts(f"coco:{path}", None, None)
    assert isinstance(validation, Subset)
    assert (len(training), validation.indices) == (23, (9, 19))
    write_coco(squares(tmp_path / "images", 5), tmp_path / "instances_val.json")
    training, validation = open_detection_parts(f"coco:{path}", None, None)
    assert (len(training), len(validation)) == (25, 5)
    assert f"validating on coco:{tmp_path / 'instances_val.json'}" in capsys.readouterr().err
    assert validation_beside(path) == str(tmp_path / "instances_val.json")
    assert validation_beside(tmp_path / "instances_val.json") is None
    # a folder of both is divided already
    training, validation = open_detection_parts(f"coco:{tmp_path}", None, None)
    assert (len(training), len(validation)) == (25, 5)
    with pytest.raises(TrainingError, match="has 3 pictures, too few to hold every tenth out"):
        open_detection_parts(squares(tmp_path / "few", 3), None, None)


def test_bad_boxes_are_told_and_survived(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = squares(tmp_path / "data")
    bad = replace(data, skipped_boxes=2, outside_boxes=1, clipped_boxes=3)
    train(small_detector(), bad, val_data=data, out=tmp_path / "run", config=BRIEF)
    told = capsys.readouterr().err
    assert "squares:0: left out boxes: 2 without area, 1 outside their picture; cut 3 boxes to their picture" in told


def test_the_command_trains_a_detector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_coco(squares(tmp_path / "pictures", 8), tmp_path / "instances_train.json")
    write_coco(squares(tmp_path / "pictures", 8), tmp_path / "instances_val.json")
    arguments = [
        "train", "yolov6_n", "--width", "0.125", "--input-size", str(SIZE), "--data", f"coco:{path}", "--images",
        str(tmp_path / "pictures"), "-o", str(tmp_path / "run"), "--epochs", "1", "--batch-size", "4", "--json",
    ]  # fmt: skip
    assert command_line(arguments) == 0
    captured = capsys.readouterr()
    assert set(json.loads(captured.out)["metrics"]) >= {"map", "map50", "recall", "loss", "epoch"}
    checkpoint = Checkpoint.open(tmp_path / "run")
    assert checkpoint.preprocess.size == (SIZE, SIZE)
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert (settings["batch_size"], settings["epochs"]) == (4, 1)
    assert settings["mosaic"] == RECIPES["few"].mosaic
    classes = ["train", "mobilenet_v2", "--data", "digits", "--images", str(tmp_path), "-o", str(tmp_path / "x")]
    assert command_line(classes) == 2
    assert "--images" in capsys.readouterr().err


def test_recipes_go_by_the_number_of_pictures() -> None:
    assert recipe_for_boxes(205) is RECIPES["few"]
    assert recipe_for_boxes(118_000) is RECIPES["many"]
    assert usual_detector_size("yolov6_n", 205) == 320
    assert usual_detector_size("yolov6_n", 118_000) == 640


def test_what_is_computed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(loop, "_multiplies_tiles", lambda: True)
    assert compute_dtype("auto", cpu) is torch.bfloat16
    assert compute_dtype("fp32", cpu) is torch.float32
    assert activation_layout("auto", torch.bfloat16, cpu) is torch.channels_last
    monkeypatch.setattr(loop, "_multiplies_tiles", lambda: False)
    assert compute_dtype("auto", cpu) is torch.float32
    assert activation_layout("auto", torch.float32, cpu) is torch.contiguous_format


def test_curves_need_matplotlib_and_training_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise MissingDependencyError('matplotlib is needed: pip install "edgevision[train]"')

    monkeypatch.setattr(plots, "require", missing)
    run(tmp_path / "run", replace(BRIEF, plots=True))
    assert 'no curves drawn: matplotlib is needed: pip install "edgevision[train]"' in capsys.readouterr().err
    assert (tmp_path / "run" / "val_batch0.jpg").exists()
    assert not list((tmp_path / "run").glob("*.png"))


def test_a_run_of_a_slice_and_of_nothing_found(tmp_path: Path) -> None:
    path = write_coco(squares(tmp_path / "images", 8), tmp_path / "all.json")
    checkpoint = train(
        small_detector(), f"coco:{path}[:4]", val_data=f"coco:{path}[4:]", out=tmp_path / "run", config=BRIEF
    )
    assert checkpoint.metrics["map"] is not None
    assert len(open_dataset(f"coco:{path}[4:]")) == 4


def test_strided_pointwise_convolutions_are_not_trained_channels_last_in_fp32(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    model = small_detector()
    assert breaks_channels_last(model, torch.float32, cpu)
    assert not breaks_channels_last(model, torch.bfloat16, cpu)
    assert not breaks_channels_last(torch.nn.Conv2d(16, 8, 1, stride=2), torch.float32, cpu)
    source = TrainingPictures(squares(tmp_path), detection_preprocess({"input_size": SIZE, "in_channels": 3}), 2)
    trainer = DetectorTrainer(model, source, replace(BRIEF, channels_last=True), Processes(0, 1, cpu))
    assert trainer.memory_format is torch.contiguous_format
