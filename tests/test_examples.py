"""Every program of examples/ runs as it stands, in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgevision.bundle import Bundle
from edgevision_calibration.ranges import RANGE_METHODS
from tests.markdown import ROOT

EXAMPLES = ROOT / "examples"
# it takes minutes; .ci/run calls it through `make demo`
RUN_ELSEWHERE = {"demo.py"}
# the two that use what the first of them makes stand behind it
IN_ORDER = ["convert_own_onnx.py", "predict_on_device.py", "bench_bundles.py", "compare_ranges.py", "custom_module.py"]
# the program as it stands, but for the number of epochs
SHORTENED = """
import runpy, sys
from edgevision.training.config import RECIPES
RECIPES["digits"] = RECIPES["digits"].with_epochs(1)
sys.argv = [sys.argv[1]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(argv: list[str], folder: Path) -> str:
    environment = {**os.environ, "EDGEVISION_CACHE": str(folder / "cache")}
    done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """Folder the programs ran in, and what each printed."""
    folder = tmp_path_factory.mktemp("examples")
    return folder, {name: run([sys.executable, str(EXAMPLES / name)], folder) for name in IN_ORDER}


def test_no_example_is_left_out():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*IN_ORDER, *RUN_ELSEWHERE, "train_digits.py"}


def test_convert_own_onnx(outputs):
    folder, printed = outputs
    assert printed["convert_own_onnx.py"].count("dB against FP32") == 6
    bundle = Bundle.open(folder / "bundles" / "own-ncnn-int8.evb")
    assert bundle.manifest.classes[3] == "thing 3"
    assert (bundle.manifest.target, bundle.manifest.precision) == ("ncnn", "int8")


def test_predict_on_device(outputs):
    _, printed = outputs
    text = printed["predict_on_device.py"]
    assert text.startswith("own: int8 on ncnn ")
    assert "000.jpg ['thing " in text
    assert "'scores': (1, 10)" in text


def test_the_program_for_the_device_touches_neither_torch_nor_onnx(outputs):
    folder, _ = outputs
    told = "import runpy, sys; runpy.run_path(sys.argv.pop(), run_name='__main__'); print(sorted(sys.modules))"
    modules = run([sys.executable, "-c", told, str(EXAMPLES / "predict_on_device.py")], folder).splitlines()[-1]
    assert "'ncnn'" in modules
    for host in ("torch", "onnx", "onnxruntime", "sklearn", "safetensors", "rich"):
        assert f"'{host}'" not in modules


def test_bench_bundles(outputs):
    folder, printed = outputs
    for engine in ("onnxruntime", "openvino", "ncnn"):
        assert f"{engine} fp32: " in printed["bench_bundles.py"]
        assert f"{engine} int8: " in printed["bench_bundles.py"]
    assert "failed" not in printed["bench_bundles.py"]
    assert (folder / "bundles" / "report" / "index.html").is_file()


def test_compare_ranges(outputs):
    lines = outputs[1]["compare_ranges.py"].splitlines()
    assert lines[0].startswith("24 pictures")
    assert lines[1].split() == RANGE_METHODS.names()
    found = {line.split()[0]: [float(cell) for cell in line.split()[1:]] for line in lines[2:]}
    assert set(found) == {"onnxruntime", "openvino", "ncnn", "tensorrt"}
    # 8 bits of a network this small keep 20 dB by any method; a plan that does not fit its graph keeps none
    assert min(min(cells) for cells in found.values()) > 20


def test_custom_module(outputs):
    text = outputs[1]["custom_module.py"]
    assert text.count("'boxes': (4, 16, 24)") == 2
    assert "largest difference between the engines" in text


def test_train_digits(tmp_path):
    printed = run([sys.executable, "-c", SHORTENED, str(EXAMPLES / "train_digits.py")], tmp_path)
    assert "after epoch 1, kept in runs/digits" in printed
    assert (tmp_path / "runs" / "digits" / "model.safetensors").is_file()
