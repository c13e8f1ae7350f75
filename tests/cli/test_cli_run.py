"""``edgevision run``: what it prints, and what it exits with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgevision.cli import VERBS
from edgevision.recipe.stages import _RUNS, Outcome
from tests.cli.conftest import call

RECIPE = """
[model]
name = "repvgg_tiny"
input_size = 16

[data]
train = "digits[:120]"

[[stage]]
name = "base"
kind = "train"
epochs = 1
batch_size = 16
threads = 1

[[stage]]
name = "files"
kind = "convert"
targets = ["onnxruntime"]
"""


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(RECIPE)
    return path


def test_a_plan_and_a_run(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    planned = call("run", recipe, "--dry-run")
    assert planned.code == 0, planned.err
    assert [line.split()[:3] for line in planned.out.splitlines()[1:]] == [
        ["base", "train", "run"], ["files", "convert", "run"],
    ]  # fmt: skip
    assert not (tmp_path / "runs").exists()
    done = call("run", recipe, "--json")
    assert done.code == 0, done.err
    assert "edgevision run: 2/2 files (convert): begins" in done.err
    found = done.document
    assert set(found) == {"out", "dry_run", "stages", "report", "summary"}
    assert found["out"] == "runs/small"
    assert [stage["action"] for stage in found["stages"]] == ["run", "run"]
    assert set(found["stages"][0]) == {"name", "kind", "folder", "action", "reason", "metrics", "checks"}
    assert found["stages"][0]["metrics"]["epoch"] == 1
    assert found["stages"][1]["checks"] == {"base-onnxruntime-fp32.evb": True}
    assert found["report"] is None
    assert (tmp_path / "runs/small/02-files/base-onnxruntime-fp32.evb").is_file()
    again = call("run", recipe, "--quiet")
    assert again.err == ""
    assert [line.split()[2] for line in again.out.splitlines()[1:]] == ["skip", "skip"]


def test_a_bundle_beyond_its_thresholds_is_told(recipe, tmp_path, monkeypatch):
    def fails(job):
        (job.folder).mkdir(parents=True)
        return Outcome(checks={"base-ncnn-fp32.evb": False})

    monkeypatch.setitem(_RUNS, "train", lambda job: _trained(job))
    monkeypatch.setitem(_RUNS, "convert", fails)
    monkeypatch.setattr("edgevision.recipe.run.result_digest", lambda stage, folder: "same")
    outcome = call("run", recipe, "-o", tmp_path / "out", "--quiet")
    assert outcome.code == 3
    assert "base-ncnn-fp32.evb misses its parity thresholds" in outcome.err


def _trained(job):
    job.folder.mkdir(parents=True)
    return Outcome()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RECIPE.replace('"train"\nepochs', '"trian"\nepochs'), "small.toml: stage 'base': unknown kind 'trian'"),
        (RECIPE.replace("epochs", "epoch"), "unknown key 'epoch': did you mean epochs"),
        (RECIPE.replace('name = "files"', 'name = "files"\nfrom = "bsae"'), "did you mean base"),
        ("[model\n", "small.toml"),
    ],
)
def test_bad_recipes_exit_with_2(recipe, tmp_path, text, message):
    recipe.write_text(text)
    outcome = call("run", recipe, "-o", tmp_path / "out")
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.out == ""
    assert not (tmp_path / "out").exists()


def test_missing_files(tmp_path):
    assert call("run", tmp_path / "none.toml").code == 2
    path = tmp_path / "gone.toml"
    path.write_text(RECIPE.replace("digits[:120]", f"folder:{tmp_path}/none"))
    outcome = call("run", path, "-o", tmp_path / "out")
    assert outcome.code == 1
    assert "stage 'base'" in outcome.err
    path.write_text(RECIPE.replace('name = "repvgg_tiny"\ninput_size = 16', f'checkpoint = "{tmp_path}/none"'))
    outcome = call("run", path, "-o", tmp_path / "out")
    assert outcome.code == 1
    assert "no such folder" in outcome.err


def test_a_state_that_is_another_files(recipe, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "recipe.json").write_text(json.dumps({"schema_version": 1, "stages": {"base": {"what": 1}}}))
    outcome = call("run", recipe, "-o", out)
    assert outcome.code == 1
    assert "remove it, and all stages run again" in outcome.err


def test_the_verb_is_listed():
    assert "resumes" in VERBS["run"]
