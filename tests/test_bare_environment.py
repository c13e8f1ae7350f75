"""A board with Python, numpy and Pillow alone: the device's side works, or says in one line what to install."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pkgutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import edgevision
from edgevision.bundle import GOLDEN, Bundle, Manifest, golden_bytes
from edgevision.cli import VERBS
from edgevision.dependencies import EXTRA_OF
from edgevision.preprocess import Preprocess
from edgevision.runtime.tensors import TensorSpec

ROOT = Path(edgevision.__file__).resolve().parent.parent
PACKAGES = {
    "edgevision": ROOT / "edgevision",
    "edgevision_converters": ROOT / "converters" / "edgevision_converters",
    "edgevision_calibration": ROOT / "calibration" / "edgevision_calibration",
    "edgevision_benchmarks": ROOT / "benchmarks" / "edgevision_benchmarks",
}
BROUGHT = ("numpy", "pillow")
# what every module of these must do without: torch, onnx, and whatever else an extra brings
DEVICE_SIDE = (
    "edgevision.bundle", "edgevision.cli", "edgevision.compression", "edgevision.data", "edgevision.dependencies",
    "edgevision.devices", "edgevision.errors", "edgevision.files", "edgevision.images", "edgevision.parity",
    "edgevision.preprocess", "edgevision.progress", "edgevision.registry", "edgevision.runtime", "edgevision.tasks",
    "edgevision_benchmarks",
)  # fmt: skip


@dataclass(frozen=True)
class Board:
    """A fresh virtual environment that holds EdgeVision, numpy and Pillow."""

    python: Path
    home: Path

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        # -I: neither this process's PYTHONPATH nor its working folder reaches the board
        command = [str(self.python), "-I", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=self.home, timeout=120)

    def python_code(self, code: str) -> str:
        found = self.run("-c", code)
        assert found.returncode == 0, found.stderr
        return found.stdout

    def cli(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "edgevision", *arguments)


def files_of(distribution: str) -> set[Path]:
    """Top-level entries of an installed distribution, its libraries and its metadata included."""
    found = importlib.metadata.distribution(distribution)
    folder = Path(str(found.locate_file("")))
    names = {file.parts[0] for file in found.files or []}
    return {folder / name for name in names if name not in ("..", "__pycache__")}


@pytest.fixture(scope="session")
def board(tmp_path_factory) -> Board:
    home = tmp_path_factory.mktemp("board")
    venv.create(home / "venv", system_site_packages=False, with_pip=False, symlinks=os.name == "posix")
    python = home / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    library = subprocess.run([python, "-I", "-c", where], capture_output=True, text=True, check=True).stdout.strip()
    # the very files that are installed here, linked: no network is needed, and no other version can come in
    for distribution in BROUGHT:
        for entry in files_of(distribution):
            (Path(library) / entry.name).symlink_to(entry)
    for name, folder in PACKAGES.items():
        (Path(library) / name).symlink_to(folder)
    return Board(python, home)


@pytest.fixture(scope="session")
def material(board) -> dict[str, Path]:
    """A picture, labelled pictures, and a bundle of every target whose hashes hold."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    folder = board.home / "photos"
    for index, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        Image.fromarray(pixels[index]).save(folder / name / "photo.png")
    golden = golden_bytes({"pixels": {"images": pixels}, "outputs": {"logits": np.zeros((2, 2), np.float32)}})
    made = {"photo": folder / "cat" / "photo.png", "photos": folder}
    for target in ("onnxruntime", "openvino", "ncnn", "tensorrt"):
        manifest = Manifest(
            name="small",
            task="classification",
            target=target,
            precision="fp32",
            inputs=(TensorSpec("images", "float32", (None, 3, 8, 8)),),
            outputs=(TensorSpec("logits", "float32", (None, 2)),),
            preprocess=Preprocess((8, 8)),
            engine_files={"model": "engine/model"},
            classes=("cat", "dog"),
        )
        made[target] = Bundle(manifest, {"engine/model": b"", GOLDEN: golden}).save(board.home / f"{target}.evb")
    (board.home / "model.onnx").write_bytes(b"never read")
    made["onnx"] = board.home / "model.onnx"
    return made


def test_the_board_has_numpy_and_pillow_and_nothing_else(board):
    code = f"from importlib.util import find_spec\nprint([name for name in {sorted(EXTRA_OF)} if find_spec(name)])"
    assert board.python_code(code).strip() == "[]"
    assert board.python_code("import numpy, PIL; print('there')").strip() == "there"
    # not even what the tools of this repository need
    absent = "from importlib.util import find_spec\nprint([n for n in ('pip', 'pytest', 'scipy') if find_spec(n)])"
    assert board.python_code(absent).strip() == "[]"


def test_every_module_of_the_device_side_can_be_imported(board):
    names = []
    for package, folder in PACKAGES.items():
        names += [module.name for module in pkgutil.walk_packages([str(folder)], f"{package}.")]
    names = [name for name in names if name.startswith(DEVICE_SIDE) and not name.endswith("__main__")]
    assert len(names) > 40
    assert {"edgevision.runtime.tensorrt", "edgevision.cli.train", "edgevision_benchmarks.bench"} <= set(names)
    code = f"import importlib\nfor name in {names!r}:\n    importlib.import_module(name)\nprint('imported')"
    assert board.python_code(code).strip() == "imported"


def test_importing_edgevision_imports_neither_numpy_nor_anything_heavy(board):
    code = "import sys, edgevision; print([n for n in ('numpy', 'PIL', 'torch', 'onnx', 'json') if n in sys.modules])"
    assert board.python_code(code).strip() == "[]"


@pytest.mark.parametrize("verb", list(VERBS))
def test_help_of_every_verb(board, verb):
    found = board.cli(verb, "--help")
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith(f"usage: edgevision {verb}") or "usage:" in found.stdout
    assert "--json" in found.stdout
    assert found.stderr == ""


def test_doctor_tells_what_to_install(board):
    found = board.cli("doctor", "--json")
    assert found.returncode == 0, found.stderr
    report = json.loads(found.stdout)
    assert set(report["runtimes"]) == {"onnxruntime", "openvino", "ncnn", "tensorrt"}
    for target, runtime in report["runtimes"].items():
        assert runtime["installed"] is False
        assert f"edgevision[{target}]" in runtime["install"]
    spoken = board.cli("doctor")
    assert spoken.returncode == 0, spoken.stderr
    assert "missing" in spoken.stdout


def test_the_model_zoo_can_be_read(board):
    found = board.cli("models", "--json")
    assert found.returncode == 0, found.stderr
    assert "mobilenet_v2" in {model["name"] for model in json.loads(found.stdout)["models"]}


def one_line(found: subprocess.CompletedProcess[str], extra: str) -> None:
    assert found.returncode == 1, found.stderr
    assert found.stdout == ""
    lines = [line for line in found.stderr.splitlines() if not line.endswith("…")]
    assert len(lines) == 1, found.stderr
    assert f'pip install "edgevision[{extra}]"' in lines[0]


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "ncnn", "tensorrt"])
@pytest.mark.parametrize("verb", ["predict", "verify", "eval"])
def test_a_missing_runtime_is_one_line_that_names_its_extra(board, material, target, verb):
    more = {"predict": [material["photo"]], "verify": [], "eval": ["--data", f"folder:{material['photos']}"]}[verb]
    one_line(board.cli(verb, material[target], *more), target)


def test_bench_names_the_extra_of_every_missing_runtime(board, material):
    targets = ["onnxruntime", "openvino", "ncnn", "tensorrt"]
    found = board.cli("bench", *(material[target] for target in targets), "--rounds", 1, "--seconds", 0.01)
    assert found.returncode == 1
    assert "Traceback" not in found.stderr
    for target in targets:
        assert f'pip install "edgevision[{target}]"' in found.stderr


def test_convert_names_its_extra(board, material):
    arguments = ["--targets", "ncnn", "--preprocess", "unit"]
    one_line(board.cli("convert", material["onnx"], *arguments), "convert")
    one_line(board.cli("convert", "mobilenet_v2", *arguments), "convert")


def test_train_names_its_extra(board, material):
    arguments = ["--model", "mobilenet_v2", "-o", board.home / "run"]
    one_line(board.cli("train", "--data", f"folder:{material['photos']}", *arguments), "train")
    one_line(board.cli("train", "--data", "digits", *arguments), "train")


def test_report_names_its_extra(board):
    results = {
        "schema_version": 1, "title": "t", "results": [], "errors": [], "environment": {}, "provenance": {},
        "further_runs": [],
    }  # fmt: skip
    (board.home / "results.json").write_text(json.dumps(results))
    one_line(board.cli("report", board.home / "results.json", "-o", board.home / "report"), "report")


def test_verify_layers_names_its_extra(board, material):
    code = (
        "from edgevision.errors import MissingDependencyError\n"
        "from edgevision_converters.layers import compare_layers\n"
        f"try:\n    compare_layers({str(material['ncnn'])!r}, graph={str(material['onnx'])!r})\n"
        "except MissingDependencyError as error:\n    print(error)"
    )
    assert 'pip install "edgevision[convert]"' in board.python_code(code)


@pytest.mark.parametrize(
    ("name", "extra"),
    [("create_model", "train"), ("train", "train"), ("load_checkpoint", "train"), ("Checkpoint", "train")],
)
def test_names_of_the_host_side_say_what_they_need(board, name, extra):
    code = (
        "import edgevision\nfrom edgevision.errors import MissingDependencyError\n"
        f"try:\n    thing = edgevision.{name}\n    print('there')\n"
        "except MissingDependencyError as error:\n    print(error)\n"
    )
    said = board.python_code(code).strip()
    assert said == "there" or f'pip install "edgevision[{extra}]"' in said


def test_a_bundle_and_its_preprocess_are_read_without_any_runtime(board, material):
    code = (
        "import edgevision as ev\n"
        f"bundle = ev.Bundle.open({str(material['ncnn'])!r})\n"
        f"print(bundle.manifest.target, bundle.manifest.preprocess({str(material['photo'])!r}).shape, "
        "len(bundle.golden()['inputs']['images']))"
    )
    assert board.python_code(code).strip() == "ncnn (3, 8, 8) 2"


def test_data_sets_are_read_without_any_extra(board, material):
    code = f"import edgevision as ev\nprint(len(ev.open_dataset({'folder:' + str(material['photos'])!r})))"
    assert board.python_code(code).strip() == "2"


def test_this_python_is_the_one_tested(board):
    assert board.python_code("import sys; print(sys.version)").strip() == sys.version
