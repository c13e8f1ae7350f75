from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from edgevision import __version__
from edgevision.cli import VERBS
from tests.cli.conftest import call


def spawn(*argv: object, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgevision", *map(str, argv)]
    return subprocess.run(command, text=True, **{"capture_output": True, "timeout": 120, **options})


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_verb_has_help(verb):
    outcome = call(verb, "--help")
    assert outcome.code == 0
    assert outcome.out.startswith(f"usage: edgevision {verb}")
    assert VERBS[verb][1:].rstrip(".") in " ".join(outcome.out.split())
    assert "--json" in outcome.out
    assert "--quiet" in outcome.out
    assert outcome.err == ""


def test_help_lists_the_verbs():
    outcome = call("--help")
    assert outcome.code == 0
    for verb in VERBS:
        assert f"\n    {verb}" in outcome.out


def test_the_version_is_printed():
    assert call("--version").out.strip() == __version__


def test_no_verb_is_wrong_usage():
    outcome = call()
    assert outcome.code == 2
    assert "usage: edgevision" in outcome.out


@pytest.mark.parametrize(
    ("given", "meant"), [("convertt", "convert"), ("predcit", "predict"), ("Verify", "verify"), ("benchmark", "bench")]
)
def test_an_unknown_verb_is_answered_with_the_near_ones(given, meant):
    outcome = call(given)
    assert outcome.code == 2
    assert f"unknown verb '{given}': did you mean" in outcome.err
    assert meant in outcome.err


def test_a_verb_far_from_all_is_answered_with_all():
    outcome = call("xyzzy")
    assert outcome.code == 2
    assert all(verb in outcome.err for verb in VERBS)


@pytest.mark.parametrize(
    "argv",
    [
        ["convert"],
        ["predict", "only-a-bundle.evb"],
        ["eval", "bundle.evb"],
        ["train", "--model", "mobilenet_v2"],
        ["convert", "x.onnx", "--no-such-option"],
        ["convert", "x.onnx", "--input-size", "big"],
        ["convert", "x.onnx", "--input-size", "0"],
        ["convert", "x.onnx", "--input-size", "1x2x3"],
        ["convert", "x.onnx", "--calibration-images", "many"],
        ["bench", "x.evb", "--threads", "one"],
    ],
)
def test_wrong_usage_exits_with_2(argv):
    outcome = call(*argv)
    assert outcome.code == 2
    assert "usage: edgevision" in outcome.err
    assert outcome.out == ""


def test_exit_codes_in_a_real_process(house, tmp_path):
    good = house.bundle("onnxruntime", "fp32")
    assert spawn("verify", good).returncode == 0
    wrong = spawn("verify", tmp_path / "gone.evb")
    assert wrong.returncode == 1
    assert wrong.stderr == f"edgevision verify: {tmp_path / 'gone.evb'}: no such bundle\n"
    assert spawn("verify").returncode == 2
    assert spawn("verify", good, "--threads", "-1").returncode == 2


def test_json_has_standard_output_to_itself(house, tmp_path):
    found = spawn(
        "convert", house.model, "--targets", "onnxruntime,ncnn", "--precision", "int8", "--preprocess", "unit",
        "--data", f"images:{house.pictures / 'images'}", "-o", tmp_path, "--json",
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert len(json.loads(found.stdout)["bundles"]) == 2
    assert "calibrate …" in found.stderr


def test_quiet_leaves_progress_out(house, tmp_path):
    found = spawn(
        "convert", house.model, "--targets", "onnxruntime,ncnn", "--precision", "int8", "--preprocess", "unit",
        "--data", f"images:{house.pictures / 'images'}", "-o", tmp_path, "--json", "--quiet",
    )  # fmt: skip
    assert found.returncode == 0
    # warnings are no progress
    assert [line for line in found.stderr.splitlines() if "warning" not in line] == []
    assert len(json.loads(found.stdout)["bundles"]) == 2


def test_a_reader_that_goes_away_is_no_error_message(house):
    program = f"{sys.executable} -m edgevision models --json | head -c 1"
    found = subprocess.run(["bash", "-o", "pipefail", "-c", program], capture_output=True, text=True, timeout=60)
    assert "Traceback" not in found.stderr
    assert "Exception" not in found.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")  # noqa: PTH110
def test_a_full_disk_behind_standard_output_is_told():
    with open("/dev/full", "w") as full:  # noqa: PTH123
        found = spawn("models", "--json", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert found.returncode == 1
    assert found.stderr == "edgevision models: [Errno 28] No space left on device\n"


def test_a_problem_of_the_machine_is_one_line(monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "/some/file")

    monkeypatch.setattr("edgevision.devices.doctor.doctor", refuse)
    outcome = call("doctor")
    assert outcome.code == 1
    assert outcome.err == "edgevision doctor: [Errno 13] Permission denied: '/some/file'\n"


def test_ctrl_c_exits_with_130(monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgevision.devices.doctor.doctor", interrupted)
    outcome = call("doctor")
    assert outcome.code == 130
    assert "edgevision doctor: interrupted" in outcome.err


def test_ctrl_c_that_a_native_module_turned_into_an_import_error(monkeypatch):
    def interrupted(*_: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error

    monkeypatch.setattr("edgevision.devices.doctor.doctor", interrupted)
    outcome = call("doctor")
    assert outcome.code == 130
    assert "edgevision doctor: interrupted: nothing is half-written" in outcome.err


def test_an_import_error_of_our_own_is_not_hidden(monkeypatch):
    def broken(*_: object) -> None:
        raise ImportError("a bug")

    monkeypatch.setattr("edgevision.devices.doctor.doctor", broken)
    with pytest.raises(ImportError, match="a bug"):
        call("doctor")


@pytest.mark.parametrize("verb", ["import", "--help", "convert --help"])
def test_the_command_line_starts_without_numpy(verb):
    program = "import edgevision" if verb == "import" else f"from edgevision.cli import main\nmain({verb.split()!r})"
    heavy = "('numpy', 'PIL', 'torch', 'onnx', 'onnxruntime', 'rich', 'jinja2')"
    code = (
        f"import sys\ntry:\n    exec({program!r})\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stderr.strip() == "[]"
