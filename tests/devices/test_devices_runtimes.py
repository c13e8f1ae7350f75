from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevision.devices import runtimes as runtimes_module
from edgevision.devices.cpu import CpuInfo
from edgevision.devices.doctor import describe, doctor, doubts, try_imports
from edgevision.devices.gpu import Gpu
from edgevision.devices.jetpack import (
    JETPACKS,
    jetpack_of,
    l4t_release,
    parse_l4t,
    python_doubt,
    tensorrt_doubt,
)
from edgevision.devices.runtimes import RUNTIMES, import_failure, machine_findings, parse_version, runtime
from tests.devices.trees import jetson_orin, write

PC = CpuInfo("Xeon", "x86_64", 4, 4, ("avx2", "avx512_vnni"))
A72 = CpuInfo("Cortex-A72", "aarch64", 4, 4, ("neon",))
ORIN = (Gpu("Orin", (8, 7)),)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Make distributions: `site(module, distribution=version, …)`; nothing else can be imported."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setattr("sys.path", [str(folder)])
    for name in RUNTIMES:
        monkeypatch.delitem(sys.modules, name, raising=False)

    def make(module: str, **versions: str) -> None:
        (folder / f"{module}.py").write_text("")
        for distribution, version in versions.items():
            name = distribution.replace("_", "-")
            info = folder / f"{distribution}-{version}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    return make


def whats(name: str, cpu: CpuInfo = PC, gpus: tuple[Gpu, ...] = (), root: Path = Path("/none")) -> list[str]:
    found = runtime(name, cpu, gpus, "no NVIDIA driver here", root=root)["doubts"]
    assert all(set(doubt) == {"what", "mend"} and doubt["mend"] for doubt in found)
    return [doubt["what"] for doubt in found]


def test_a_sound_runtime_raises_no_doubt(site) -> None:
    site("onnxruntime", onnxruntime="1.20.1")
    assert whats("onnxruntime") == []


def test_two_distributions_of_one_module(site) -> None:
    site("onnxruntime", onnxruntime="1.20.1", onnxruntime_gpu="1.20.1")
    assert "installed over each other" in whats("onnxruntime")[0]


def test_an_old_version(site) -> None:
    site("ncnn", ncnn="1.0.20230816")
    assert "older than 1.0.20240410" in whats("ncnn")[0]


def test_openvino_without_dot_products(site) -> None:
    site("openvino", openvino="2026.1.0")
    assert whats("openvino") == []
    assert "without dotprod" in whats("openvino", A72)[0]


def test_tensorrt_needs_a_gpu_and_its_jetpack(site, tmp_path: Path) -> None:
    site("tensorrt", tensorrt="10.13.2")
    assert whats("tensorrt") == ["it cannot run: no NVIDIA driver here"]
    assert whats("tensorrt", gpus=ORIN) == []
    jetson = jetson_orin(tmp_path / "jetson")
    assert "comes with 10.3" in whats("tensorrt", A72, ORIN, jetson)[0]


def test_what_is_not_installed_is_missing_and_not_doubtful(site) -> None:
    found = runtime("tensorrt", PC, (), "no driver")
    assert (found["installed"], found["version"], found["doubts"]) == (False, None, [])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise ImportError('libgomp.so.1: cannot open shared object file')", "libgomp.so.1"),
        ("import os; os.kill(os.getpid(), 11)", "ends the process (signal 11)"),
        ("import sys; sys.exit(4)", "exit code 4"),
        ("import time; time.sleep(30)", "does not return"),
        ("", None),
    ],
)
def test_imports_are_tried_in_a_process_of_their_own(
    body: str, words: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtimes_module, "_IMPORT_TIMEOUT_S", 5.0 if words != "does not return" else 0.5)
    (tmp_path / "odd_runtime.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = import_failure("odd_runtime")
    assert found is None if words is None else words in (found or "")


def test_a_runtime_that_cannot_be_imported_is_doubtful(monkeypatch: pytest.MonkeyPatch) -> None:
    report = doctor()
    for name in RUNTIMES:
        report["runtimes"][name] |= {"installed": name == "ncnn", "doubts": []}
    monkeypatch.setattr(runtimes_module, "import_failure", lambda name: f"{name} lacks libgomp.so.1")
    found = try_imports(report)
    assert doubts(found) == ["ncnn: cannot be imported: ncnn lacks libgomp.so.1"]
    assert "pip install --force-reinstall ncnn" in describe(found)
    # the report that was given stays as it was
    assert doubts(report) == []


def test_strict_doubts_are_those_of_installed_runtimes() -> None:
    report = doctor()
    bare = {name: {**state, "installed": False, "doubts": []} for name, state in report["runtimes"].items()}
    assert doubts({**report, "runtimes": bare}) == ["no runtime is installed"]
    one = {**bare, "ncnn": {**bare["ncnn"], "installed": True}}
    assert doubts({**report, "runtimes": one}) == []
    one["ncnn"] = {**one["ncnn"], "doubts": [{"what": "it is old", "mend": "renew it"}]}
    assert doubts({**report, "runtimes": one}) == ["ncnn: it is old"]


@pytest.mark.parametrize(
    ("text", "release", "name"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic", (36, 4), "6.1 and 6.2.x"),
        ("# R32 (release), REVISION: 7.4, GCID: 1", (32, 7), "4.6.x"),
        ("# R35 (release), REVISION: 6.1", (35, 6), "5.1.x"),
        ("# R38 (release), REVISION: 2.0", (38, 2), "7.0 and 7.1"),
        ("# R39 (release), REVISION: 2.0", (39, 2), "7.2"),
        ("# R21 (release), REVISION: 8.0", (21, 8), None),
        ("something else", None, None),
    ],
)
def test_releases_of_jetson_linux(text: str, release: tuple[int, int] | None, name: str | None) -> None:
    assert parse_l4t(text) == release
    line = jetpack_of(release)
    assert (None if line is None else line.name) == name


def test_lines_of_jetpack_do_not_overlap() -> None:
    for first, second in itertools.pairwise(JETPACKS):
        assert first.last < second.first
        assert first.first <= first.last


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_any_text_as_release(text: str) -> None:
    found = parse_l4t(text)
    assert found is None or all(part >= 0 for part in found)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=4), st.sampled_from(["", "rc1", ".dev0", "+cu12", ".post1"]))
def test_versions_are_read_up_to_the_first_word(parts: list[int], tail: str) -> None:
    version = ".".join(str(part) for part in parts)
    # a tail without a dot belongs to the last number
    assert parse_version(version + tail) == tuple(parts)


def test_a_jetpack_whose_bindings_are_for_another_python(tmp_path: Path) -> None:
    old = JETPACKS[1]
    assert "for Python 3.8, and this is Python 3.11" in (python_doubt(old, (3, 11)) or "")
    assert python_doubt(old, (3, 8)) is None
    write(tmp_path, {"etc/nv_tegra_release": "# R35 (release), REVISION: 4.1"})
    found = machine_findings(tmp_path)
    assert "JetPack 5.1.x" in found[0]["what"]
    assert "JetPack 6 or later" in found[0]["mend"]
    write(tmp_path, {"etc/nv_tegra_release": "# R28 (release), REVISION: 4.0"})
    assert "no JetPack that is known" in machine_findings(tmp_path)[0]["what"]
    assert machine_findings(tmp_path / "none") == []
    assert l4t_release(tmp_path / "none") is None


def test_versions_that_belong_to_a_jetpack() -> None:
    assert tensorrt_doubt(JETPACKS[3], "10.3.0.30") is None
    assert "TensorRT 8.6.2" in (tensorrt_doubt(JETPACKS[3], "8.6.2") or "")
