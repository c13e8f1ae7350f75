from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from edgevision.checkpoint import Checkpoint
from edgevision.cli import main
from edgevision.errors import UsageError
from edgevision.models import create_model
from edgevision.models.repopt_vgg import scaled_blocks
from edgevision.training import TrainConfig, train
from edgevision.training.repoptimizer import default_search_epochs, search_scales

CONFIG = TrainConfig(epochs=1, batch_size=64, lr=0.05, threads=1)
ARGUMENTS = {"num_classes": 10, "in_channels": 1, "input_size": 16, "width": 0.25}


def plain():
    torch.manual_seed(0)
    return create_model("repoptvgg_tiny", **ARGUMENTS)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    out = tmp_path_factory.mktemp("repopt") / "search"
    model = plain()
    checkpoint = search_scales(model, "digits", out=out, epochs=1, config=CONFIG)
    return out, model, checkpoint


def test_a_search_gives_learned_scales_and_is_repeated_from_its_folder(searched, monkeypatch):
    out, model, checkpoint = searched
    assert checkpoint.arguments["search"] is True
    found = Checkpoint.open(out).build()
    learned = 0.0
    for block, source in zip(scaled_blocks(model), scaled_blocks(found), strict=True):
        assert torch.equal(block.scale_3x3, source.scale_3x3)
        assert torch.equal(block.scale_1x1, source.scale_1x1)
        learned = max(learned, source.scale_3x3.std().item())
    assert learned > 1e-3

    def must_not_train(*unused):
        raise AssertionError("a finished search was trained again")

    monkeypatch.setattr("edgevision.training.loop.Trainer.train_epoch", must_not_train)
    again = plain()
    search_scales(again, "digits", out=out, epochs=1, config=CONFIG)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_the_run_keeps_its_scales_and_ends_with_the_same_bits_when_resumed(searched, tmp_path, monkeypatch):
    out, model, _ = searched
    config = replace(CONFIG, epochs=2)
    begin = {name: value.clone() for name, value in model.state_dict().items()}
    whole = train(model, "digits", out=tmp_path / "whole", config=config)
    scales = [name for name in begin if "scale_" in name]
    assert scales
    assert all(torch.equal(whole.weights[name], begin[name]) for name in scales)
    assert not torch.equal(whole.weights["stage1.0.rbr_dense.conv.weight"], begin["stage1.0.rbr_dense.conv.weight"])

    from edgevision.training.loop import Trainer

    trains = Trainer.train_epoch

    def stops(self, epoch, on_step):
        if epoch == 1:
            raise KeyboardInterrupt
        return trains(self, epoch, on_step)

    monkeypatch.setattr(Trainer, "train_epoch", stops)
    for attempt in range(2):
        again = plain()
        search_scales(again, "digits", out=out, epochs=1, config=CONFIG)
        if attempt == 0:
            with pytest.raises(KeyboardInterrupt):
                train(again, "digits", out=tmp_path / "stopped", config=config)
            monkeypatch.setattr(Trainer, "train_epoch", trains)
    resumed = train(again, "digits", out=tmp_path / "stopped", config=config)
    assert all(torch.equal(value, resumed.weights[name]) for name, value in whole.weights.items())


def test_the_command_searches_first_and_says_what_does_not_go_together(tmp_path, capsys):
    command = ["train", "--data", "digits", "--width", "0.25", "--input-size", "16", "--epochs", "1", "--quiet"]
    run = tmp_path / "run"
    assert main([*command, "--model", "repoptvgg_tiny", "-o", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["epoch"] == 1
    kept = Checkpoint.open(run)
    assert kept.arguments.get("search") is None
    assert torch.equal(
        kept.weights["stage1.0.scale_3x3"], Checkpoint.open(run / "search").weights["stage1.0.scale_3x3"]
    )
    wrong = [*command, "--model", "repvgg_tiny", "-o", str(tmp_path / "x"), "--search-epochs", "1"]
    assert main(wrong) == 2
    assert "no scales to search" in capsys.readouterr().err
    adam = [*command, "--model", "repoptvgg_tiny", "-o", str(tmp_path / "x"), "--optimizer", "adamw"]
    assert main(adam) == 2
    assert "sgd" in capsys.readouterr().err


def test_what_a_search_does_not_take():
    assert [default_search_epochs(epochs) for epochs in (1, 20, 60, 300)] == [1, 2, 6, 10]
    with pytest.raises(UsageError, match="repoptvgg_a0"):
        search_scales(create_model("repvgg_tiny", **ARGUMENTS), "digits", out="x", config=CONFIG)
    with pytest.raises(UsageError, match="1 epoch"):
        search_scales(plain(), "digits", out="x", epochs=0, config=CONFIG)
