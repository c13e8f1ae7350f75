"""Ctrl-C in a real process: nothing half-written anywhere, no process left behind, and the next run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from edgevision.bundle import Bundle
from edgevision.graph import Graph
from edgevision_calibration.table import CalibrationTable
from tests.conformance.nets import save_net, write_pictures

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is sent as a POSIX signal")

TARGETS = ("onnxruntime",)
# −2 is what a shell calls 130 as well: where Ctrl-C comes in the middle of an exec(), as of a dataclass that is being
# made while a module is imported, Python ends by the signal itself, whatever was caught and told
INTERRUPTED = (130, -signal.SIGINT)
ANY_TIME = ("onnxruntime", "openvino")


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    """A model and pictures large enough that calibration takes a good part of a second."""
    root = tmp_path_factory.mktemp("interrupt")
    save_net(root / "tiny.onnx")
    few = write_pictures(root / "few", 6, size=384)
    (root / "photos").mkdir()
    for index in range(120):
        os.link(few / f"{index % 6:03d}.png", root / "photos" / f"{index:03d}.png")
    return root


class Conversion:
    """One ``edgevision convert`` in a process of its own, with a folder of its own for temporary files."""

    def __init__(self, material: Path, folder: Path, targets: tuple[str, ...] = TARGETS) -> None:
        self.out, self.temporary = folder / "out", folder / "tmp"
        self.temporary.mkdir(exist_ok=True)
        command = [
            *(
                sys.executable,
                "-m",
                "edgevision",
                "convert",
                str(material / "tiny.onnx"),
                "--targets",
                ",".join(targets),
            ),
            *("--precision", "int8", "--data", str(material / "photos"), "--preprocess", "unit", "--json"),
            *("-o", str(self.out)),
        ]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1"},
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())

    def wait_until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert self.process.poll() is None, f"ended before the moment came: {self.lines}"
            assert time.monotonic() < deadline, "the moment never came"
            time.sleep(0.002)

    def says(self, line: str) -> Callable[[], object]:
        return lambda: line in self.lines

    def runs_child(self, name: str) -> Callable[[], object]:
        def found() -> list[psutil.Process]:
            return [child for child in self.children() if any(name in word for word in _command(child))]

        return found

    def children(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def interrupt(self) -> int:
        """Press Ctrl-C; the exit code."""
        children = self.children()
        self.process.send_signal(signal.SIGINT)
        code = self.finish()[0]
        _, alive = psutil.wait_procs(children, timeout=5)
        assert not alive, "a native tool lives on"
        return code

    def finish(self) -> tuple[int, str]:
        assert self.process.stdout is not None
        out = self.process.stdout.read()
        code = self.process.wait(120)
        self._reader.join()
        self.process.stdout.close()
        self.process.stderr.close()
        return code, out

    def assert_nothing_half_written(self) -> None:
        # ONNX Runtime keeps the number of its session in a file of its own
        assert [path.name for path in self.temporary.iterdir() if path.name != ".ses"] == []
        for path in self.out.rglob("*"):
            assert not path.name.endswith(".tmp"), f"{path} was left behind"
            if path.suffix == ".evb":
                Bundle.open(path)
            elif path.suffix == ".onnx":
                assert Graph.open(path).sha256.startswith(path.stem)
            elif path.name == "table.json":
                CalibrationTable.open(path.parent)

    def stamps(self) -> dict[str, int]:
        """Whole results and when they were written."""
        results = [*self.out.rglob("*.evb"), *self.out.rglob("table.json")]
        return {str(path.relative_to(self.out)): path.stat().st_mtime_ns for path in results}


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def goes_on(material: Path, folder: Path, targets: tuple[str, ...] = TARGETS) -> Conversion:
    """The same command again: it ends well, and what was whole before is as it was."""
    again = Conversion(material, folder, targets)
    before = again.stamps()
    code, out = again.finish()
    assert code == 0, again.lines
    assert [Path(row["path"]).name for row in json.loads(out)["bundles"]] == [
        f"tiny-{target}-int8.evb" for target in targets
    ]
    after = again.stamps()
    assert {name: after[name] for name in before} == before, "finished work was done again"
    again.assert_nothing_half_written()
    return again


def told(conversion: Conversion) -> None:
    assert conversion.lines[-1].startswith("edgevision convert: interrupted: nothing is half-written")
    assert not any("Traceback" in line for line in conversion.lines)


@pytest.mark.parametrize("line", ["read the model …", "equalize …", "calibrate …"])
def test_ctrl_c_in_the_pipeline_itself(material, tmp_path, line):
    conversion = Conversion(material, tmp_path)
    conversion.wait_until(conversion.says(line))
    assert conversion.interrupt() in INTERRUPTED
    told(conversion)
    conversion.assert_nothing_half_written()
    assert not list(conversion.out.rglob("*.evb"))
    goes_on(material, tmp_path)


@pytest.mark.parametrize(("name", "target"), [("edgevision_converters.child", "openvino"), ("pnnx", "ncnn")])
def test_ctrl_c_in_a_native_converter(material, tmp_path, name, target):
    targets = ("onnxruntime", target)
    conversion = Conversion(material, tmp_path, targets)
    conversion.wait_until(conversion.runs_child(name))
    assert conversion.interrupt() in INTERRUPTED
    told(conversion)
    conversion.assert_nothing_half_written()
    assert "tiny-onnxruntime-int8.evb" in conversion.stamps()
    again = goes_on(material, tmp_path, targets)
    # the pictures were not gone through a second time
    assert "calibrate …" not in again.lines


@pytest.mark.parametrize("share", [0.3, 0.55, 0.8])
def test_ctrl_c_at_any_time(material, tmp_path_factory, share, duration):
    folder = tmp_path_factory.mktemp("any")
    conversion = Conversion(material, folder, ANY_TIME)
    time.sleep(share * duration)
    # 0: a machine that is faster this time may have finished
    assert conversion.interrupt() in (0, *INTERRUPTED), conversion.lines
    assert not any("Traceback" in line for line in conversion.lines)
    conversion.assert_nothing_half_written()
    goes_on(material, folder, ANY_TIME)


@pytest.fixture(scope="module")
def duration(material, tmp_path_factory) -> float:
    """Seconds of a conversion that nobody interrupts."""
    begun = time.monotonic()
    goes_on(material, tmp_path_factory.mktemp("whole"), ANY_TIME)
    return time.monotonic() - begun


def test_a_killed_conversion_goes_on(material, tmp_path):
    """No chance to clean up: files in the making may be left, never under the name of a result."""
    conversion = Conversion(material, tmp_path, ANY_TIME)
    conversion.wait_until(conversion.runs_child("edgevision_converters.child"))
    children = conversion.children()
    conversion.process.kill()
    assert conversion.finish()[0] == -signal.SIGKILL
    # children notice that their parent has gone
    assert not psutil.wait_procs(children, timeout=10)[1]
    for path in conversion.out.rglob("*.evb"):
        Bundle.open(path)
    for path in conversion.temporary.iterdir():
        assert path.name.startswith("edgevision-") or path.name == ".ses"
    again = Conversion(material, tmp_path, ANY_TIME)
    assert again.finish()[0] == 0
    assert "calibrate …" not in again.lines
