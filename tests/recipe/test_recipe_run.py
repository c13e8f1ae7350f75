"""Stages in order: what is done is skipped, what has changed runs again, and nothing is lost on the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from small_recipe import STAGES, recipe, results, weights

from edgevision.bundle import Bundle
from edgevision.checkpoint import Checkpoint
from edgevision.errors import CheckpointError, DataError, MissingDependencyError, UsageError
from edgevision.recipe.run import RecipeRun, plan_recipe, run_recipe
from edgevision.recipe.state import State
from edgevision.training.loop import Trainer
from edgevision_benchmarks.report import Report


def actions(run: RecipeRun) -> list[str]:
    return [stage.action for stage in run.stages]


def entries(out: Path) -> dict[str, dict[str, object]]:
    return dict(json.loads((out / "recipe.json").read_text())["stages"])


def test_every_stage_leaves_what_the_next_one_takes(chain):
    assert actions(chain.run) == ["run"] * 5
    assert [path.name for path in sorted(chain.out.iterdir())] == [
        "01-base", "02-pruned", "03-distilled", "04-qat", "05-int8", "recipe.json",
    ]  # fmt: skip
    base, pruned, distilled = (Checkpoint.open(stage.folder) for stage in chain.run.stages[:3])
    assert base.changes == ("trained",)
    assert pruned.changes[:2] == ("trained", "pruned")
    assert distilled.changes[-1] == "distilled"
    assert pruned.metrics["macs_ratio"] <= 0.5
    assert distilled.channels == pruned.channels != {}
    bundle = Bundle.open(chain.run.stages[-1].folder / "qat-onnxruntime-int8.evb")
    assert bundle.manifest.provenance["calibration"]["method"] == "qat"
    assert chain.run.stages[-1].checks == {"qat-onnxruntime-int8.evb": True}
    assert chain.run.failed_checks == []
    assert chain.run.report is None


def test_a_second_call_does_nothing(chain, monkeypatch):
    monkeypatch.setattr("edgevision.recipe.stages.Job.run", lambda job: pytest.fail(f"{job.stage.name} ran again"))
    lines: list[str] = []
    before = (chain.out / "recipe.json").read_bytes()
    again = run_recipe(recipe(), out=chain.out, tell=lines.append)
    assert actions(again) == ["skip"] * 5
    assert [stage.metrics for stage in again.stages] == [stage.metrics for stage in chain.run.stages]
    assert lines[0] == "1/5 base (train): done before"
    assert (chain.out / "recipe.json").read_bytes() == before


def test_a_changed_stage_runs_again_and_those_behind_it(chain, tmp_path):
    out = chain.copy(tmp_path / "out")
    changed = recipe(qat={"epochs": 1})
    planned = plan_recipe(changed, out=out)
    assert actions(planned) == ["skip", "skip", "skip", "run", "run"]
    assert planned.stages[3].reason == "options.epochs is 2 there and 1 here"
    assert planned.stages[4].reason == "after qat"
    assert results(out) == results(chain.out)
    lines: list[str] = []
    done = run_recipe(changed, out=out, tell=lines.append)
    assert actions(done) == ["skip", "skip", "skip", "run", "run"]
    assert any(line == "qat: runs again: options.epochs is 2 there and 1 here" for line in lines)
    assert any("04-qat" in line and "replaced" in line for line in lines)
    # what was there before is kept
    assert (out / "replaced" / "04-qat" / "graph.onnx").read_bytes() == (chain.out / "04-qat/graph.onnx").read_bytes()
    assert (out / "replaced" / "05-int8" / "qat-onnxruntime-int8.evb").is_file()
    assert results(out)["qat"] != results(chain.out)["qat"]
    assert results(out)["int8"] != results(chain.out)["int8"]


def test_the_same_result_spares_the_stages_behind_it(chain, tmp_path):
    """Batches are the same size in words and in fact: the weights come out the same, and nothing else runs."""
    out = chain.copy(tmp_path / "out")
    done = run_recipe(recipe(base={"workers": 1}), out=out)
    assert actions(done) == ["run", "skip", "skip", "skip", "skip"]
    assert results(out) == results(chain.out)


def test_an_earlier_place_in_the_recipe_only_renames(chain, tmp_path, monkeypatch):
    out = chain.copy(tmp_path / "out")
    (out / "04-distilled").mkdir()  # nobody's
    values = recipe()
    values["stage"].insert(1, {"name": "plain", "kind": "convert", "targets": ["onnxruntime"]})
    planned = plan_recipe(values, out=out)
    assert actions(planned) == ["skip", "run", "skip", "skip", "skip", "skip"]
    values["stage"][1] = {**values["stage"][1], "name": "base2", "label": "other"}
    done = run_recipe(values, out=out)
    assert actions(done) == ["skip", "run", "skip", "skip", "skip", "skip"]
    assert (out / "06-int8" / "qat-onnxruntime-int8.evb").is_file()
    assert (out / "02-base2" / "other-onnxruntime-fp32.evb").is_file()
    assert (out / "replaced" / "04-distilled").is_dir()
    assert not (out / "02-pruned").exists()


@pytest.mark.parametrize("harm", ["changed", "gone", "unclaimed"])
def test_a_finished_stage_that_is_not_whole_runs_again(chain, tmp_path, harm):
    out = chain.copy(tmp_path / "out")
    folder = out / "05-int8"
    if harm == "changed":
        bundle = folder / "qat-onnxruntime-int8.evb"
        bundle.write_bytes(bundle.read_bytes()[:-7])
    elif harm == "gone":
        shutil.rmtree(folder)
    else:
        values = json.loads((out / "recipe.json").read_text())
        del values["stages"]["int8"]
        (out / "recipe.json").write_text(json.dumps(values))
    done = run_recipe(recipe(), out=out)
    assert actions(done) == ["skip"] * 4 + ["run"]
    assert results(out) == results(chain.out)
    assert (out / "replaced").exists() == (harm != "gone")


def test_weights_that_somebody_changed_are_not_built_upon(chain, tmp_path):
    out = chain.copy(tmp_path / "out")
    path = out / "03-distilled" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00\x00")
    planned = plan_recipe(recipe(), out=out)
    assert actions(planned) == ["skip", "skip", "run", "run", "run"]
    assert "damaged or changed" in planned.stages[2].reason
    done = run_recipe(recipe(), out=out)
    # the same weights again, so that nothing behind it has to run
    assert actions(done) == ["skip", "skip", "run", "skip", "skip"]
    assert results(out) == results(chain.out)


def test_ctrl_c_names_the_stage_and_the_next_call_goes_on(chain, tmp_path, monkeypatch):
    out = chain.copy(tmp_path / "out")
    for name in ("03-distilled", "04-qat", "05-int8"):
        shutil.rmtree(out / name)
    values = json.loads((out / "recipe.json").read_text())
    values["stages"] = {name: values["stages"][name] for name in ("base", "pruned")}
    (out / "recipe.json").write_text(json.dumps(values))
    epoch = Trainer.train_epoch

    def stopped(trainer, number, *arguments):
        if number == 1:
            raise KeyboardInterrupt
        return epoch(trainer, number, *arguments)

    monkeypatch.setattr(Trainer, "train_epoch", stopped)
    with pytest.raises(KeyboardInterrupt, match="stage 'distilled' stopped; what is finished is kept"):
        run_recipe(recipe(), out=out)
    assert results(out)["distilled"] is None
    epochs: list[int] = []

    def counted(trainer, number, *arguments):
        epochs.append(number)
        return epoch(trainer, number, *arguments)

    monkeypatch.setattr(Trainer, "train_epoch", counted)
    assert actions(plan_recipe(recipe(), out=out, until="distilled")) == ["skip", "skip", "resume"]
    done = run_recipe(recipe(), out=out, until="distilled")
    assert actions(done) == ["skip", "skip", "resume"]
    assert epochs == [1]
    ours, theirs = weights(out / "03-distilled"), weights(chain.out / "03-distilled")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_beginning_with_a_checkpoint(chain, tmp_path):
    """And a teacher by its folder; the report needs no stage of conversion."""
    values = {
        "name": "from a checkpoint",
        "model": {"checkpoint": str(chain.out / "01-base"), "label": "unpruned"},
        "data": {"train": "digits[:200]", "test": "digits[200:260]"},
        "report": {
            "targets": ["onnxruntime"],
            "rounds": 1,
            "seconds": 0.01,
            "min_runs": 2,
            "end_to_end": False,
        },
        "stage": [{"name": "half", "kind": "prune", "params": 0.6, "epochs": 0, "importance": "l2", "target": "none"}],
    }
    done = run_recipe(values, out=tmp_path / "out")
    assert done.report == tmp_path / "out" / "02-report"
    report = Report.load(done.report)
    assert report.title == "from a checkpoint"
    assert [(row.model, row.precision) for row in report.results] == [
        ("unpruned", "fp32"), ("half", "fp32"), ("half", "int8"),
    ]  # fmt: skip
    assert all(row.n == 60 and row.error is None for row in report.results)
    page = (done.report / "index.html").read_text()
    # each point says which stage it is
    assert ">unpruned<" in page.replace("\n", "")
    assert "half" in page
    rows = (done.report / "stages.csv").read_text().splitlines()
    assert rows[0].startswith("stage,target,precision,threads,top1,points_lost")
    assert rows[1].split(",")[:3] == ["unpruned", "onnxruntime", "fp32"]
    assert rows[1].split(",")[5] == "0.0"
    again = plan_recipe(values, out=tmp_path / "out")
    assert actions(again) == ["skip", "skip"]


def test_bench_is_a_stage(chain, tmp_path):
    values = {
        "model": {"checkpoint": str(chain.out / "03-distilled")},
        "data": {"train": "digits[:200]"},
        "stage": [
            {"name": "files", "kind": "convert", "targets": ["onnxruntime"], "label": "digits"},
            {"name": "times", "kind": "bench", "rounds": 1, "seconds": 0.01, "min_runs": 2, "end_to_end": False},
        ],
    }  # fmt: skip
    done = run_recipe(values, out=tmp_path / "out")
    (row,) = Report.load(done.stages[1].folder).results
    assert (row.model, row.precision) == ("digits", "fp32")
    # the pictures that were held out, not those that were trained on
    assert row.n is not None
    assert 0 < row.n < 30


def test_pictures_are_looked_for_before_anything_runs(tmp_path):
    values = recipe()
    values["stage"][-1]["data"] = str(tmp_path / "none")
    with pytest.raises(DataError, match=r"stage 'int8': .*no such file or folder"):
        run_recipe(values, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_a_newer_version(chain, tmp_path):
    newer = Path(shutil.copytree(chain.out / "01-base", tmp_path / "newer"))
    values = json.loads((newer / "model.json").read_text())
    (newer / "model.json").write_text(json.dumps({**values, "schema_version": 99}))
    changed = recipe()
    changed["model"] = {"checkpoint": str(newer)}
    with pytest.raises(CheckpointError, match="written by a newer EdgeVision"):
        run_recipe(changed, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_state_of_a_newer_version_and_one_that_is_no_json(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "recipe.json").write_text('{"schema_version": 2, "stages": {}}')
    with pytest.raises(CheckpointError, match="written by a newer EdgeVision"):
        run_recipe(recipe(), out=out)
    (out / "recipe.json").write_text('{"schema_version": 1, "stages":')
    with pytest.raises(CheckpointError, match="remove it, and all stages run again"):
        run_recipe(recipe(), out=out)


def test_a_stage_that_fails_is_named(chain, tmp_path):
    out = chain.copy(tmp_path / "out")
    with pytest.raises(UsageError, match="stage 'pruned': "):
        run_recipe(recipe(pruned={"macs": 0.0001}), out=out)
    # it is mended, and the rest is still there
    assert actions(run_recipe(recipe(), out=out, until="base")) == ["skip"]


def test_what_is_not_installed_is_named_with_its_stage(tmp_path, monkeypatch):
    def missing(job):
        raise MissingDependencyError('training needs torch: pip install "edgevision[train]"')

    monkeypatch.setattr("edgevision.recipe.stages.Job.run", missing)
    with pytest.raises(MissingDependencyError, match=r"^stage 'base': training needs torch: pip install"):
        run_recipe(recipe(), out=tmp_path / "out")


def test_an_unknown_last_stage(tmp_path):
    with pytest.raises(UsageError, match="unknown stage 'qta': did you mean qat"):
        run_recipe(recipe(), out=tmp_path / "out", until="qta")


def test_old_folders_never_cover_each_other(tmp_path):
    state = State(tmp_path)
    places = []
    for number in range(3):
        (tmp_path / "01-base").mkdir()
        (tmp_path / "01-base" / str(number)).touch()
        places.append(state.set_aside("01-base"))
    assert [next(place.iterdir()).name for place in places] == ["0", "1", "2"]


def test_the_state_knows_every_stage(chain):
    found = entries(chain.out)
    assert tuple(found) == STAGES
    assert found["pruned"]["identity"]["inputs"] == {"base": found["base"]["result"]}
    assert found["distilled"]["identity"]["teacher"] == found["base"]["result"]
