"""The documents hold: README's blocks run in order, and what is named, linked and tabulated is there."""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import onnx
import pytest

from edgevision import errors
from edgevision.cli import VERBS
from edgevision.data import DATASETS
from edgevision.models import MODELS
from edgevision.preprocess import PRESETS, Preprocess
from edgevision.runtime.backend import BACKENDS
from edgevision_converters.target import PRECISIONS_OF
from tests.cells import write_cells
from tests.detection.detection_nets import bright_cells
from tests.markdown import ROOT, Block, anchors, code_spans, documents, fenced_blocks, links, table

README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")

# commands that set a machine up: looked up instead of run
SET_UP = ("make ", "pip ")
NAMES = [path.name for path in documents()]


def test_readme_blocks_run_in_order(tmp_path):
    prepare(tmp_path)
    output = ""
    ran = []
    for block in fenced_blocks(README):
        if block.language == "bash":
            output = run_bash(block, tmp_path) or output
        elif block.language == "python":
            output = run([sys.executable, "-c", block.text], block, tmp_path)
        elif block.language == "toml":
            name = re.match(r"# (\S+\.toml)\n", block.text)
            assert name, f"README.md:{block.line}: a TOML block begins with its file's name"
            (tmp_path / name[1]).write_text(block.text, encoding="utf-8")
        elif block.language == "json":
            wrong = list(departures(json.loads(block.text), json.loads(output)))
            assert not wrong, f"README.md:{block.line}: the command above prints other JSON: {'; '.join(wrong)}"
        elif block.language == "console":
            run_console(block, tmp_path)
        else:
            assert block.language == "text", f"README.md:{block.line}: {block.language!r} is not executed by this test"
        ran.append(block.language)
    assert {"bash", "python", "toml", "json", "console"} <= set(ran)
    assert (tmp_path / "report" / "index.html").stat().st_size > 10_000
    assert (tmp_path / "merged" / "results.json").is_file()


def prepare(folder: Path) -> None:
    """What the text says the reader has: ONNX files, a folder of photos, one photo more, pictures with boxes."""
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        example = importlib.import_module("convert_own_onnx")
    finally:
        sys.path.remove(str(ROOT / "examples"))
    example.write_model(folder / "my.onnx")
    example.write_photos(folder / "photos")
    shutil.copy(folder / "photos" / "003.jpg", folder / "photo.jpg")
    write_cells(folder / "cells")
    onnx.save(bright_cells(), str(folder / "detector.onnx"))


def environment() -> dict[str, str]:
    """The interpreter's own commands first, wide terminals, and no bars."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "COLUMNS": "200", "NO_COLOR": "1"}


def run(argv: list[str], block: Block, folder: Path, *, failing: bool = False) -> str:
    done = subprocess.run(argv, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300)
    told = f"README.md:{block.line}\n{block.text}\nexit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert failing or done.returncode == 0, told
    return done.stdout + (done.stderr if failing else "")


def run_bash(block: Block, folder: Path) -> str:
    lines = block.text.replace("\\\n", " ").splitlines()
    set_up = [line for line in lines if line.startswith(SET_UP)]
    for line in set_up:
        check_set_up(line)
    script = "\n".join(line for line in lines if line not in set_up)
    return run(["bash", "-euo", "pipefail", "-c", script], block, folder) if script.strip() else ""


def run_console(block: Block, folder: Path) -> None:
    """``$ command`` lines, each followed by everything it prints, wrapped as one likes."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, expected = part.partition("\n")
        # one stream, as a terminal shows it
        got = run(["bash", "-uo", "pipefail", "-c", f"exec 2>&1; {command}"], block, folder, failing=True)
        assert got.split() == expected.split(), f"README.md:{block.line}: $ {command}\nprints\n{got}"


def check_set_up(line: str) -> None:
    words = line.split()
    if words[0] == "make":
        assert words[1] in make_targets(), f"Makefile has no target {words[1]!r}"
    for extras in re.findall(r"edgevision[\w.-]*\[([\w,-]+)\]", line):
        assert set(extras.split(",")) <= set(project()["optional-dependencies"]), line


def make_targets() -> set[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))


def project() -> dict:
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    return toml.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def departures(documented, printed, path="$"):
    """Where a documented JSON value is not found in a printed one: a key that is missing, or another type."""
    if documented is None or printed is None:
        return
    if kind_of(documented) != kind_of(printed):
        yield f"{path}: {kind_of(printed)} in place of {kind_of(documented)}"
    elif isinstance(documented, dict):
        for key, value in documented.items():
            if key not in printed:
                yield f"{path}.{key} is missing"
            else:
                yield from departures(value, printed[key], f"{path}.{key}")
    elif isinstance(documented, list) and documented:
        yield from departures(documented[0], printed[0], f"{path}[0]") if printed else (f"{path} is empty",)


def kind_of(value) -> str:
    if isinstance(value, bool):
        return "bool"
    return "number" if isinstance(value, (int, float)) else type(value).__name__


def test_departures_are_seen():
    printed = {"a": 1, "b": [{"c": None, "d": "x"}], "e": True}
    assert list(departures({"a": 2.5, "b": [{"c": 1, "d": "y"}], "e": False}, printed)) == []
    assert list(departures({"z": 1}, printed)) == ["$.z is missing"]
    assert list(departures({"b": [{"d": 1}]}, printed)) == ["$.b[0].d: str in place of number"]
    assert list(departures({"e": 1}, printed)) == ["$.e: bool in place of number"]
    assert list(departures({"b": [1]}, {"b": []})) == ["$.b is empty"]


def test_first_commands_come_first():
    first = fenced_blocks(README)[0]
    assert first.text.split() == ["make", "demo", "make", "test"]
    assert README.index("make demo") < README.index("edgevision convert")


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in links(text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = ROOT / name if not file else (ROOT / name).parent / file
        assert path.exists(), f"{name}: {target} does not exist"
        if anchor:
            assert anchor in anchors(path.read_text(encoding="utf-8")), f"{name}: {target} is no heading"


@pytest.mark.parametrize("name", NAMES)
def test_documents_name_no_machine_and_leave_nothing_open(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for forbidden in ("TODO", "FIXME", "TBD", "lorem ipsum", "/work/", "/home/", "/root/", "/tmp/", "C:\\"):
        assert forbidden.lower() not in text.lower(), f"{name} holds {forbidden!r}"
    wide = [f"{name}:{number}" for number, line in enumerate(text.splitlines(), 1) if len(line) > 120]
    # tables and commands cannot be wrapped
    allowed = [
        f"{name}:{n}" for n, line in enumerate(text.splitlines(), 1) if line.startswith(("|", "edgevision ", "{"))
    ]
    assert set(wide) <= set(allowed), "lines over 120 columns"


def test_every_verb_is_documented():
    assert [row[0].strip("`") for row in table(README, "verb")] == list(VERBS)


def test_options_that_are_named_exist():
    known = {"--help", "--json", "--quiet", "--version"} | {"--no-deps", "--system-site-packages"}
    for verb in VERBS:
        parser = argparse.ArgumentParser()
        importlib.import_module(f"edgevision.cli.{verb}").add_arguments(parser)
        known |= {option for action in parser._actions for option in action.option_strings}
    for name in NAMES:
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", (ROOT / name).read_text(encoding="utf-8")))
        foreign = {"--show", "--durations"} if name == "CONTRIBUTING.md" else set()
        assert named <= known | foreign, f"{name}: {sorted(named - known)}"


def test_data_kinds_are_those_of_the_registry():
    assert sorted(row[0].strip("`") for row in table(README, "kind")) == DATASETS.names()


def test_extras_are_those_of_the_project():
    assert [row[0].strip("`") for row in table(README, "extra")] == list(project()["optional-dependencies"])


def test_engines_and_precisions_are_those_that_convert_takes():
    rows = table(README, "engine")
    assert sorted(row[1].strip("`") for row in rows) == BACKENDS.names()
    for row in rows:
        having = tuple(name for name, cell in zip(("fp32", "fp16", "int8"), row[2:5], strict=True) if cell == "yes")
        assert having == PRECISIONS_OF[row[1].strip("`")], row
        assert set(row[2:5]) <= {"yes", "–"}


def test_exit_codes_are_those_of_the_error_tree():
    codes = {int(row[0]) for row in table(README, "exit code")}
    tree = {kind.exit_code for kind in vars(errors).values() if isinstance(kind, type)}
    assert codes == tree | {0, 130}


def test_models_presets_and_preprocess_keys_are_named():
    spans = set(code_spans(README))
    assert set(MODELS.names()) <= spans
    assert set(PRESETS) <= spans
    example = next(block.text for block in fenced_blocks(README) if block.text.startswith("# preprocess.toml"))
    keys = set(re.findall(r"^(\w+) = ", example, re.MULTILINE)) | spans
    assert {field.name for field in fields(Preprocess)} <= keys


def entry_point_groups() -> set[str]:
    """Groups that a `Registry` is extended through; they look like modules and are none."""
    modules = ("edgevision.runtime.backend", "edgevision.models", "edgevision.data", "edgevision_converters.target")
    found = set()
    for name in (*modules, "edgevision_calibration.ranges"):
        found |= {value.group for value in vars(importlib.import_module(name)).values() if hasattr(value, "group")}
    return found


@pytest.mark.parametrize("name", NAMES)
def test_modules_and_paths_that_are_named_exist(name):
    missing = [span for span in code_spans((ROOT / name).read_text(encoding="utf-8")) if not is_there(span)]
    assert not missing, f"{name} names what is not there: {missing}"


def is_there(span: str) -> bool:
    """False for a path or dotted name of this project that does not exist; True for any other text."""
    span = span.replace("NAME", "*")  # a file that is to be written stands beside others
    if re.fullmatch(r"(edgevision|converters|calibration|benchmarks|tests|examples|\.ci)/[\w./*-]*", span):
        return (ROOT / span).exists() or any(True for _ in ROOT.glob(span.rstrip("/")))
    if re.fullmatch(r"edgevision(_\w+)?(\.\w+)+", span):
        return span in entry_point_groups() or resolves(span)
    if re.fullmatch(r"\w+\.py", span):
        tracked = (path.name for room in ("edgevision", "converters", "calibration", "benchmarks", "tests", "examples")
                   for path in (ROOT / room).rglob("*.py"))  # fmt: skip
        return any(fnmatch.fnmatch(path, span) for path in tracked)
    return True


def resolves(dotted: str) -> bool:
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[length:]:
            if not hasattr(value, attribute):
                return False
            value = getattr(value, attribute)
        return True
    return False


def test_missing_names_are_seen():
    for span in ("edgevision/nothing.py", "edgevision.nothing", "edgevision.bundle.Nothing", "nothing_at_all.py"):
        assert not is_there(span), span
    for span in ("edgevision/bundle.py", "tests/conformance/", "edgevision.bundle.Bundle.open", "edgevision.models"):
        assert is_there(span), span


def test_nouns_are_defined_where_the_architecture_says():
    rows = table(ARCHITECTURE, "noun")
    assert len(rows) >= 8
    for noun, file, *_ in rows:
        source = (ROOT / file.strip("`")).read_text(encoding="utf-8")
        assert re.search(rf"^class {noun.strip('`')}\b", source, re.MULTILINE), f"{file} has no class {noun}"


def test_changelog_tells_of_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[{re.escape(project()['version'])}\]", text, re.MULTILINE)


def test_license_is_the_one_the_project_states():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert project()["license"] == "Apache-2.0"
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    # nine sections: the whole licence, not its notice
    assert re.findall(r"^   (\d)\. ", text, re.MULTILINE) == list("123456789")
