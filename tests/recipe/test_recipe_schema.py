"""What may stand in a recipe, and what is said of everything else, before any stage runs."""

from __future__ import annotations

import copy
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
from small_recipe import VALUES, recipe, toml

from edgevision.errors import UsageError
from edgevision.recipe.options import valid_keys
from edgevision.recipe.schema import KINDS, parse_recipe, read_recipe

BASE = {"name": "base", "kind": "train", "epochs": 1}


def with_stages(*stages: dict[str, Any], **top: Any) -> dict[str, Any]:
    return {"model": {"name": "repvgg_tiny"}, "data": {"train": "digits"}, "stage": list(stages), **top}


def test_a_stage_takes_the_network_before_it_unless_it_says_otherwise():
    found = parse_recipe(recipe(distilled={"from": "base"}))
    assert {stage.name: stage.sources for stage in found.stages} == {
        "base": ("model",), "pruned": ("base",), "distilled": ("base",), "qat": ("distilled",), "int8": ("qat",),
    }  # fmt: skip
    assert [found.folder(stage) for stage in found.stages][::4] == ["01-base", "05-int8"]
    assert found.stage("distilled").teacher == "base"
    with pytest.raises(FrozenInstanceError):
        found.seed = 4  # type: ignore[misc]


def test_bundles_in_between_do_not_end_the_chain():
    convert = {"name": "first", "kind": "convert", "targets": ["ncnn"]}
    found = parse_recipe(with_stages(BASE, convert, {"name": "pruned", "kind": "prune", "macs": 0.5}))
    assert found.stage("pruned").sources == ("base",)


def test_bench_takes_all_bundles_before_it():
    first = {"name": "first", "kind": "convert", "targets": ["ncnn"]}
    second = {"name": "second", "kind": "convert", "targets": ["ncnn"], "precision": "int8"}
    found = parse_recipe(with_stages(BASE, first, second, {"name": "times", "kind": "bench", "threads": 2}))
    assert found.stage("times").sources == ("first", "second")


def test_a_student_of_its_own():
    student = {"name": "student", "kind": "distill", "teacher": "base", "model": {"name": "mobilenet_v2", "width": 0.5}}
    found = parse_recipe(with_stages(BASE, student)).stage("student")
    assert found.sources == ()
    assert found.model is not None
    assert found.model.arguments == {"width": 0.5}


def test_the_report_is_the_last_stage_and_sees_every_network():
    found = parse_recipe({**recipe(), "report": True})
    assert found.stages[-1].kind == "report"
    assert found.stages[-1].sources == ("base", "pruned", "distilled", "qat", "int8")


def test_variables_stand_for_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("PICTURES", "digits")
    values = with_stages(BASE, data={"train": "${PICTURES}[:50]", "test": "folder:${RECIPE_DIR}/test"})
    found = parse_recipe(values, folder=tmp_path)
    assert (found.data.train, found.data.test) == ("digits[:50]", f"folder:{tmp_path}/test")
    monkeypatch.delenv("PICTURES")
    with pytest.raises(UsageError, match=r"PICTURES is not set: export PICTURES="):
        parse_recipe(values)


def test_toml_and_plain_values_are_the_same(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(toml(VALUES))
    assert read_recipe(path) == parse_recipe(copy.deepcopy(VALUES), name="small", folder=tmp_path)


def test_messages_name_the_file(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text("sede = 3\n")
    with pytest.raises(UsageError, match=r"bad\.toml: the recipe: unknown key 'sede': did you mean seed"):
        read_recipe(path)
    path.write_text("seed = \n")
    with pytest.raises(UsageError, match=r"bad\.toml"):
        read_recipe(path)
    with pytest.raises(UsageError, match=r"none\.toml"):
        read_recipe(tmp_path / "none.toml")


@pytest.mark.parametrize("kind", [*KINDS, "report"])
def test_starting_over_is_the_recipes_own_business(kind):
    assert not {"restart", "force"} & set(valid_keys(kind))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no stages": (with_stages(), "needs stages"),
    "unknown kind": (with_stages({"name": "a", "kind": "prun"}), "stage 'a': unknown kind 'prun': did you mean prune"),
    "no kind": (with_stages({"name": "a"}), "needs a kind: train, prune"),
    "no name": (with_stages({"kind": "train"}), "stage 1 needs a name"),
    "a path for a name": (with_stages({"name": "../a", "kind": "train"}), "needs a name of letters"),
    "a name twice": (with_stages(BASE, BASE), "'base': the name is given twice"),
    "the model's name": (with_stages({**BASE, "name": "model"}), "the name is given twice"),
    "the report's name": (with_stages({**BASE, "name": "report"}, report=True), "the name is given twice"),
    "unknown key": (with_stages({**BASE, "epoch": 3}), "stage 'base': train: unknown key 'epoch': did you mean epochs"),
    "unknown model key": (with_stages(BASE, model={"name": "repvgg_a0", "widht": 1}), "did you mean width"),
    "unknown data key": (with_stages(BASE, data={"trian": "digits"}), r"\[data\]: unknown key 'trian'"),
    "unknown model": (with_stages(BASE, model={"name": "repvgg_a9"}), r"\[model\]: unknown model"),
    "no model": (with_stages(BASE, model={}), "names a network of the zoo"),
    "both models": (with_stages(BASE, model={"name": "repvgg_a0", "checkpoint": "a"}), "one of them"),
    "width of a checkpoint": (with_stages(BASE, model={"checkpoint": "a", "width": 0.5}), "has its own width"),
    "no such weights": (with_stages(BASE, model={"name": "repvgg_a0", "weights": "none.pt"}), "no such weight file"),
    "a text for a number": (with_stages({**BASE, "lr": "fast"}), "lr must be a number; got 'fast'"),
    "out of range": (with_stages({**BASE, "lr": -1.0}), "stage 'base': lr must be"),
    "a negative seed": (with_stages(BASE, seed=-1), "seed must be a whole number"),
    "prune the zoo": (with_stages({"name": "p", "kind": "prune", "macs": 0.5}), "untrained network of the zoo"),
    "a ratio above 1": (with_stages(BASE, {"name": "p", "kind": "prune", "macs": 1.5}), "above 0 and below 1"),
    "macs of text": (with_stages(BASE, {"name": "p", "kind": "prune", "macs": "half"}), "macs must be a number"),
    "from a later stage": (
        with_stages({**BASE, "from": "next"}, {**BASE, "name": "next"}),
        "from = 'next' is this stage itself or a later one",
    ),
    "from itself": (with_stages({**BASE, "from": "base"}), "is this stage itself"),
    "from nowhere": (with_stages(BASE, {**BASE, "name": "b", "from": "bsae"}), "did you mean base"),
    "from two": (with_stages(BASE, {**BASE, "name": "b", "from": ["base", "model"]}), "takes one network"),
    "train after QAT": (
        with_stages(BASE, {"name": "q", "kind": "quantize"}, {**BASE, "name": "b"}),
        "leaves a quantized network, which only convert takes",
    ),
    "bench without bundles": (with_stages(BASE, {"name": "t", "kind": "bench"}), "put a convert stage in front"),
    "no teacher": (with_stages(BASE, {"name": "d", "kind": "distill"}), "needs a teacher"),
    "a teacher that is not there": (
        with_stages(BASE, {"name": "d", "kind": "distill", "teacher": "elsewhere"}),
        "teacher 'elsewhere' is neither an earlier stage",
    ),
    "a later teacher": (
        with_stages(BASE, {"name": "d", "kind": "distill", "teacher": "e"}, {**BASE, "name": "e", "from": "base"}),
        "teacher = 'e' is this stage itself or a later one",
    ),
    "an untrained teacher": (
        with_stages(BASE, {"name": "d", "kind": "distill", "teacher": "model"}),
        "leaves an untrained network; a teacher is a Checkpoint",
    ),
    "temperature 0": (
        with_stages(BASE, {"name": "d", "kind": "distill", "teacher": "base", "temperature": 0}),
        "temperature must be above 0",
    ),
    "no pictures": (with_stages(BASE, data={}), r"needs pictures: \[data\] with train"),
    "no targets": (with_stages(BASE, {"name": "c", "kind": "convert"}), "needs targets"),
    "unknown target": (with_stages(BASE, {"name": "c", "kind": "convert", "targets": ["nccn"]}), "did you mean ncnn"),
    "unknown method": (with_stages(BASE, {"name": "q", "kind": "quantize", "method": "qta"}), "unknown method"),
    "two bundles of one name": (
        with_stages(BASE, *({"name": n, "kind": "convert", "targets": ["ncnn"]} for n in "cd")),
        'label = "d"',
    ),
    "unknown report key": (with_stages(BASE, report={"round": 3}), r"\[report\]: unknown key 'round'"),
    "report of text": (with_stages(BASE, report="yes"), "report is true, false or a"),
    "bench of text": (
        with_stages(BASE, {"name": "c", "kind": "convert", "targets": ["ncnn"]},
                    {"name": "t", "kind": "bench", "threads": ["two"]}),
        "threads must be a list, each a whole number",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_bad_recipes_are_refused_with_what_is_right(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values, message = WRONG[case]
    with pytest.raises(UsageError, match=message):
        parse_recipe(values)


@pytest.mark.parametrize("name", ["cifar10_mobilenet_v2", "cifar10_repvgg_a0"])
def test_the_recipes_that_are_shipped(name, monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEVISION_DATA", str(tmp_path))
    monkeypatch.setenv("EDGEVISION_RUNS", str(tmp_path))
    found = read_recipe(Path(__file__).parents[2] / "benchmarks" / "recipes" / f"{name}.toml")
    assert [stage.kind for stage in found.stages] == ["prune", "distill", "quantize", "convert", "report"]
    assert found.stage("distilled").teacher == "unpruned"
