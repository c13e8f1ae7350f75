"""``edgevision prune`` on digits, as a person calls it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

import edgevision as ev
from edgevision.checkpoint import Checkpoint
from edgevision.images import to_image
from edgevision.models.statistics import count_multiply_adds
from edgevision.pipeline import prune as pipeline
from edgevision.pruning.sparsity import is_two_of_four
from tests.cli.conftest import call

SHAPE = (1, 1, 32, 32)
FEW = "npz:{}/few"
SETTINGS = "batch_size = 24\nlr = 0.05\nema_decay = 0.9\nthreads = 1\nwarmup_epochs = 0\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prune")
    (folder / "fast.toml").write_text(SETTINGS)
    # a quarter of the digits: minutes of training show nothing that seconds do not
    (folder / "few").mkdir()
    for part, count in (("train", 360), ("test", 60)):
        digits = ev.open_dataset("digits", split=part)
        images = np.stack([np.asarray(to_image(digits[index].image)) for index in range(count)])
        np.savez(folder / "few" / f"{part}.npz", images=images, labels=digits.labels[:count])
    outcome = call(
        "train", "--model", "repvgg_tiny", "--width", 0.5, "--in-channels", 1, "--data", FEW.format(folder),
        "--epochs", 3, "--preprocess", "digits", "-o", folder / "base",
        "--config", folder / "fast.toml", "--quiet",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    return folder


def prune(trained, out, *arguments, quick=True):
    # what is not said to be looked at is chosen without looking at pictures: it takes a tenth of the time
    if quick and "--importance" not in arguments:
        arguments = ("--importance", "l2", *arguments)
    if quick and "--scope" not in arguments:
        arguments = ("--scope", "global", *arguments)
    return call(
        "prune",
        trained / "base",
        "--data",
        FEW.format(trained),
        "--config",
        trained / "fast.toml",
        "-o",
        out,
        *arguments,
    )


def weights(folder):
    return Checkpoint.open(folder).weights


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_it_says_what_to_expect_then_prunes_and_trains(trained, tmp_path):
    outcome = prune(trained, tmp_path / "run", "--macs", 0.6, "--round-to", 4, "--epochs", 1, "--json", quick=False)
    assert outcome.code == 0, outcome.err
    expected = outcome.document["expected"]
    assert expected["latency_ms"][0] > 0
    assert "measured: onnxruntime, FP32, one thread" in outcome.err
    assert outcome.err.index("expected of the pruned network") < outcome.err.index("distilling repvgg_tiny")
    smaller = ev.load_checkpoint(tmp_path / "run")
    assert smaller.changes == ("trained", "pruned", "distilled")
    now, before = (
        count_multiply_adds(smaller.build(), SHAPE),
        count_multiply_adds(Checkpoint.open(trained / "base").build(), SHAPE),
    )
    assert now < 0.62 * before
    assert smaller.metrics["macs_ratio"] == expected["macs"][1] / expected["macs"][0] <= 0.6
    assert smaller.metrics["top1"] > 0.13  # chance is 0.1, and three short epochs are not much
    # a finished run is returned as it is
    again = prune(trained, tmp_path / "run", "--macs", 0.6, "--round-to", 4, "--epochs", 1, quick=False)
    assert again.code == 0
    assert "expected" not in again.err
    other = prune(trained, tmp_path / "run", "--macs", 0.5, "--round-to", 4, "--epochs", 1, quick=False)
    assert other.code == 1
    assert "is another run's: prune.macs is 0.6 there and 0.5 here" in other.err


def test_a_run_that_was_stopped_ends_with_the_same_weights(trained, tmp_path, monkeypatch):
    arguments = ("--macs", 0.5, "--round-to", 4, "--steps", 2, "--epochs", 3, "--target", "none")
    assert prune(trained, tmp_path / "whole", *arguments).code == 0
    folders = sorted(path.name for path in (tmp_path / "whole" / "steps").iterdir())
    assert folders == ["1", "2"]
    # the last step trains two epochs of the three
    assert len((tmp_path / "whole/steps/2/tuned/metrics.csv").read_text().splitlines()) == 3
    first, last = (Checkpoint.open(tmp_path / "whole/steps" / step / "pruned") for step in ("1", "2"))
    full = count_multiply_adds(Checkpoint.open(trained / "base").build(), SHAPE)
    # half of the way in factors: √0.5 after the first step
    assert 0.5 < count_multiply_adds(first.build(), SHAPE) / full < 0.5**0.5 + 0.02
    assert count_multiply_adds(last.build(), SHAPE) / full < 0.52
    from edgevision.training.loop import Trainer

    epochs, plain = [0], Trainer.train_epoch

    def stopping(self, *arguments):
        epochs[0] += 1
        if epochs[0] in (2, 3):
            raise KeyboardInterrupt
        return plain(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_epoch", stopping)
        assert prune(trained, tmp_path / "stopped", *arguments).code == 130
        assert not (tmp_path / "stopped" / "model.json").exists()
        assert prune(trained, tmp_path / "stopped", *arguments).code == 130
        assert prune(trained, tmp_path / "stopped", *arguments).code == 0
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))


def test_restart_forgets_what_was_there(trained, tmp_path):
    arguments = ("--params", 0.6, "--epochs", 0, "--target", "none", "--round-to", 4)
    assert prune(trained, tmp_path, *arguments).code == 0
    first = weights(tmp_path)
    assert prune(trained, tmp_path, *arguments, "--importance", "random", "--restart").code == 0
    assert not same(first, weights(tmp_path))
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.metrics["parameters_ratio"] <= 0.61
    # accuracy of the unpruned network must not be taken for the pruned one's
    assert "top1" not in checkpoint.metrics
    assert checkpoint.metrics["unpruned_top1"] == Checkpoint.open(trained / "base").metrics["top1"]


def test_slimming_comes_first_where_it_is_asked_for(trained, tmp_path):
    outcome = prune(
        trained, tmp_path, "--macs", 0.6, "--round-to", 4, "--epochs", 0, "--slim-epochs", 1, "--slim-strength", 0.01,
        "--importance", "bn", "--target", "none",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert Checkpoint.open(tmp_path).changes == ("trained", "slimmed", "trained", "pruned")
    before = weights(trained / "base")["stage3.0.rbr_dense.bn.weight"].abs().mean()
    assert weights(tmp_path / "steps" / "slim")["stage3.0.rbr_dense.bn.weight"].abs().mean() < before


def test_two_of_four_for_tensorrt_survives_training(trained, tmp_path):
    outcome = prune(trained, tmp_path, "--sparsity", "2:4", "--target", "tensorrt", "--epochs", 1, "--no-distill")
    assert outcome.code == 0, outcome.err
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.changes == ("trained", "reparameterized", "sparse 2:4", "trained")
    network = checkpoint.build()
    assert is_two_of_four(network.stage3[1].rbr_reparam.weight)
    assert is_two_of_four(network.linear.weight)


def test_sensitivity_writes_a_table_and_changes_nothing(trained, tmp_path):
    before = {path: path.read_bytes() for path in (trained / "base").rglob("*") if path.is_file()}
    outcome = call(
        "prune", trained / "base", "--sensitivity", "--data", FEW.format(trained), "--pictures", 32, "--ratios", "0.5",
        "-o", tmp_path, "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert len(outcome.document["cuts"]) == 4
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".json", ".svg"]
    assert json.loads((tmp_path / "pruning_sensitivity.json").read_text()) == outcome.document
    assert {path: path.read_bytes() for path in (trained / "base").rglob("*") if path.is_file()} == before
    table = call(
        "prune",
        trained / "base",
        "--sensitivity",
        "--data",
        FEW.format(trained),
        "--pictures",
        8,
        "--ratios",
        "0.5",
    )
    assert "kept: linear: they are outputs of the network" in table.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "one of --macs, --params, --latency and --sparsity"),
        (("--macs", "0.5", "--params", "0.5"), "one of --macs, --params, --latency and --sparsity; got macs, params"),
        (("--macs", "1.5"), "the ratio of macs to keep must be above 0 and below 1; got 1.5"),
        (("--macs", "0.001", "--target", "none"), "is the least that can be reached"),
        (("--macs", "0.5", "--importance", "l3"), "unknown importance 'l3': did you mean l2 or l1"),
        (("--macs", "0.5", "--scope", "locl"), "unknown scope 'locl'"),
        (("--macs", "0.5", "--steps", "3", "--epochs", "2"), "3 steps need at least an epoch each"),
        (("--macs", "0.5", "--steps", "0"), "steps must be a whole number of at least 1"),
        (("--macs", "0.5", "--steps", "2", "--epochs", "0"), "steps are for training between them"),
        (("--sparsity", "2:4"), "2:4 sparsity gains nothing on onnxruntime"),
        (("--sparsity", "unstructured"), "no engine runs faster with zeros scattered"),
        (("--sensitivity", "--ratios", "0.5,much"), "ratios are numbers such as 0.25,0.5"),
    ],
)
def test_bad_input(trained, tmp_path, arguments, message):
    outcome = prune(trained, tmp_path / "run", *arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert not (tmp_path / "run" / "model.json").exists()


def test_what_is_missing_is_said(trained, tmp_path):
    assert "Give -o RUN" in call("prune", trained / "base", "--macs", 0.5).err
    assert "give --data KIND:PATH" in call("prune", trained / "base", "--macs", 0.5, "-o", tmp_path).err
    assert "give --data KIND:PATH" in call("prune", trained / "base", "--sensitivity").err
    gone = call("prune", tmp_path / "gone", "--macs", 0.5, "--epochs", 0, "-o", tmp_path / "run")
    assert gone.code == 1
    assert "no such folder" in gone.err
    same_folder = prune(trained, trained / "base", "--macs", 0.5)
    assert same_folder.code == 2
    assert "holds the network to prune" in same_folder.err


def test_a_newer_checkpoint_is_refused(trained, tmp_path):
    shutil.copytree(trained / "base", tmp_path / "new")
    path = tmp_path / "new" / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 99}))
    outcome = call("prune", tmp_path / "new", "--macs", 0.5, "--epochs", 0, "-o", tmp_path / "run")
    assert outcome.code == 1
    assert "written by a newer EdgeVision" in outcome.err


def test_a_planner_can_take_the_place_of_the_ratio(trained, tmp_path):
    from edgevision.pruning.prune import make_plan

    asked = []

    def planner(model, share, data):
        asked.append(share)
        return make_plan(model, ratios={"stage3.0.rbr_dense.conv": 0.5})

    checkpoint = ev.prune_checkpoint(
        trained / "base", out=tmp_path, options=pipeline.PruneOptions(epochs=0), planner=planner,
        planner_identity={"name": "half of stage 3"}, target=None,
    )  # fmt: skip
    assert asked
    assert checkpoint.channels["stage3.1.rbr_identity"] == [16, 16, 1]
