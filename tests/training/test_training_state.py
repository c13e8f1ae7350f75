from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from small_run import small_net

from edgevision.dependencies import installed
from edgevision.errors import MissingDependencyError, OutputError, TrainingError
from edgevision.training import TrainConfig
from edgevision.training.checkpointing import (
    RunProgress,
    TrainingState,
    capture_optimizer,
    restore_module,
    restore_optimizer,
)
from edgevision.training.folder import RunFolder, describe_differences
from edgevision.training.metrics import COLUMNS, MetricsLog
from edgevision.training.optimizers import create_optimizer

ROW = dict.fromkeys(COLUMNS, 0.125) | {"epoch": 1, "step": 8, "val_loss": None}


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    optimizer.zero_grad()
    model(torch.randn(4, 3, 12, 12)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("optimizer_name", ["sgd", "adamw"])
def test_state_comes_back_bit_for_bit(optimizer_name: str) -> None:
    config = TrainConfig(optimizer=optimizer_name, lr=0.01)
    model = small_net()
    optimizer = create_optimizer(model, config)
    for seed in range(3):
        step(model, optimizer, seed)
    progress = RunProgress(epoch=3, step=24, best_epoch=2, best_accuracy=1 / 3, best_loss=0.1, history=[ROW])
    state = TrainingState(progress, model.state_dict(), {}, capture_optimizer(optimizer), {"scale": 2.0**16})
    data = state.to_bytes()

    other = small_net(seed=1)
    other_optimizer = create_optimizer(other, config)
    back = TrainingState.from_bytes(data, "state")
    assert back.progress == progress
    assert back.scaler == {"scale": 65536.0}
    restore_module(other, back.model, "state")
    restore_optimizer(other_optimizer, back.optimizer)
    for network, mover in ((model, optimizer), (other, other_optimizer)):
        step(network, mover, 99)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_tied_weights_are_kept() -> None:
    weight = torch.randn(3)
    state = TrainingState(RunProgress(), {"a": weight, "b": weight}, {}, {}, {})
    back = TrainingState.from_bytes(state.to_bytes(), "state")
    assert torch.equal(back.model["a"], weight)
    assert torch.equal(back.model["b"], weight)


@pytest.mark.parametrize("damage", [lambda d: b"", lambda d: d[:5], lambda d: d[: len(d) // 2], lambda d: b"x" * 400])
def test_damaged_state_is_refused(damage: object) -> None:
    data = TrainingState(RunProgress(), small_net().state_dict(), {}, {}, {}).to_bytes()
    with pytest.raises(TrainingError, match="state is damaged and cannot be resumed"):
        TrainingState.from_bytes(damage(data), "state")  # type: ignore[operator]


def test_state_of_another_version_or_model_is_refused() -> None:
    data = TrainingState(RunProgress(), {}, {}, {}, {}).to_bytes()
    with pytest.raises(TrainingError, match="has format 7"):
        TrainingState.from_bytes(data.replace(rb"\"format\": 1", rb"\"format\": 7"), "state")
    with pytest.raises(TrainingError, match="the state does not fit the model"):
        restore_module(small_net(), {}, "the state")


def test_log_has_one_row_per_epoch_in_both_forms(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, [ROW])
    log.append({**ROW, "epoch": 2})
    log.close()
    with (tmp_path / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert rows[0]["val_loss"] == ""
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[0]["val_loss"] is None


def test_log_forgets_epochs_that_the_state_does_not_hold(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, [])
    for epoch in (1, 2):
        log.append({**ROW, "epoch": epoch})
    MetricsLog(tmp_path, [ROW]).append({**ROW, "epoch": 2, "lr": 0.5})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["lr"]) for line in lines] == [(1, 0.125), (2, 0.5)]


def test_a_log_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, [])
    log.csv_path.unlink()
    log.csv_path.mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*metrics\.csv"):
        log.append(ROW)


@pytest.mark.skipif(installed("tensorboard"), reason="tensorboard is installed")
def test_tensorboard_missing_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match="pip install tensorboard"):
        MetricsLog(tmp_path, [], tensorboard=True)


@pytest.mark.skipif(not installed("tensorboard"), reason="tensorboard is not installed")
def test_tensorboard_events_are_written(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, [], tensorboard=True)
    log.append(ROW)
    log.close()
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_differences_are_named_by_their_path() -> None:
    there = {"config": {"lr": 0.1, "seed": 0}, "data": {"pictures": 5}, "old": 1}
    here = {"config": {"lr": 0.2, "seed": 0}, "data": {"pictures": 5}}
    assert list(describe_differences(there, here)) == [
        "config.lr is 0.1 there and 0.2 here",
        "old is 1 there and nothing here",
    ]


def test_a_damaged_config_is_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.claim({"a": 1}, resume=True)
    folder.config.write_text("{")
    with pytest.raises(TrainingError, match=r"config\.json cannot be read"):
        folder.claim({"a": 1}, resume=True)
    folder.claim({"a": 1}, resume=False)
    folder.claim({"a": 1}, resume=True)
