"""ARM for real: this project's wheel in aarch64 CPython under QEMU, on cores with and without dot products."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgevision.bundle import Bundle
from edgevision.cli import main
from edgevision.parity import compare
from edgevision.pipeline.convert import convert
from edgevision.remote.arm.cost import compare_costs, load_costs
from edgevision.remote.arm.guest import COUNT_VARIABLE
from edgevision.remote.arm.plugin import QEMU
from edgevision.remote.arm.root import DownloadError
from edgevision.remote.emulated import emulated_python
from edgevision.runtime import load
from tests.conformance.nets import NAMES, save_net, write_pictures

pytestmark = pytest.mark.arm

CORES = ("cortex-a72", "cortex-a76")
# one process for all verbs: an emulated interpreter takes seconds to start. Prints a line of JSON for each call.
VERBS = """
import contextlib, io, json, sys
import numpy as np
from edgevision.cli import main
from edgevision.runtime import load

for arguments in json.loads(sys.argv[1]):
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        code = main(arguments)
    print(json.dumps([code, told.getvalue()]))
for bundle in json.loads(sys.argv[2]):
    with load(bundle, threads=1) as session:
        feed = dict(np.load("feed.npz"))
        np.savez(bundle + ".npz", **session.run(feed["images"]))
"""


@pytest.fixture(scope="session")
def arm() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the emulated Python of a core; the root is made once and kept in the user's cache."""
    if shutil.which(QEMU) is None:
        pytest.skip(f"{QEMU} is not installed: apt install qemu-user")
    try:
        pythons = {core: emulated_python(core) for core in CORES}
    except DownloadError as error:
        pytest.skip(f"what the emulated root is made of cannot be downloaded here: {error}")

    def run(core: str, *arguments: str, count_into: Path | None = None, cwd: Path | None = None):
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        environment |= {} if count_into is None else {COUNT_VARIABLE: str(count_into)}
        command = [str(pythons[core]), *arguments]
        return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=300)

    return run


@pytest.fixture(scope="session")
def material(tmp_path_factory) -> Path:
    """INT8 bundles made on this machine, and pictures."""
    folder = tmp_path_factory.mktemp("arm")
    pictures = write_pictures(folder / "pictures", 12)
    common = {"data": str(pictures), "out": folder, "preprocess": "unit", "classes": NAMES}
    made = convert(save_net(folder / "tiny.onnx"), targets=["ncnn", "onnxruntime"], precision="int8", **common)
    for bundle in made:
        shutil.move(bundle.path, folder / f"{bundle.manifest.target}.evb")
    images = made[0].golden()["inputs"]["images"]
    np.savez(folder / "feed.npz", images=images)
    return folder


@pytest.mark.parametrize("core", CORES)
def test_doctor_verify_and_predict(arm, material, core):
    bundles = [str(material / "ncnn.evb"), str(material / "onnxruntime.evb")]
    picture = str(sorted((material / "pictures").iterdir())[0])
    predict = [["predict", bundle, picture, "--json", "--top", "6"] for bundle in bundles]
    calls = [["doctor", "--json"], *(["verify", bundle, "--json"] for bundle in bundles), *predict]
    done = arm(core, "-c", VERBS, json.dumps(calls), json.dumps(bundles), cwd=material)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert [code for code, _ in answers] == [0] * len(calls), done.stdout
    doctor, *verified = (json.loads(text) for _, text in answers[:3])
    told = json.dumps(doctor)
    assert "aarch64" in told
    assert ("dotprod" in doctor["environment"]["cpu"]["features"]) == (core == "cortex-a76")
    assert all(answer["passed"] for answer in verified)
    for bundle, (_, text) in zip(bundles, answers[3:], strict=True):
        check_agreement(bundle, json.loads(text), picture)


def check_agreement(bundle: str, answer: dict, picture: str) -> None:
    """The emulated answers against this machine's own, by the thresholds that the bundle carries."""
    opened = Bundle.open(bundle)
    with load(opened, threads=1) as session:
        here = session.run(np.load(Path(bundle).with_name("feed.npz"))["images"])
        best = session(picture).top(1)[0][0]
    there = dict(np.load(f"{bundle}.npz"))
    found = compare(here, there, task="classification", thresholds=opened.manifest.thresholds["reference"])
    assert found.passed, found
    assert answer["image"] == picture
    assert answer["top"][0]["name"] == best


def count(arm, core: str, bundle: Path) -> dict[str, int]:
    code = "import json, sys; from edgevision.remote.arm.guest import count; print(json.dumps(count(sys.argv[1])))"
    done = arm(core, "-c", code, str(bundle))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_bench_counts_and_the_gate_holds(arm, material, tmp_path, capsys):
    bundle = material / "ncnn.evb"
    command = ["bench", str(bundle), "--data", str(material / "pictures"), "--limit", "2", "--json"]
    command += ["--device", "emulated://cortex-a76", "-o", str(tmp_path / "report")]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    (row,) = report["results"]
    # an emulator's time is no device's: there is none in the report
    assert row["latency_ms"] is None
    assert row["end_to_end_ms"] is None
    assert (row["n"], row["error"]) == (2, None)
    assert report["provenance"]["device"] == "emulated cortex-a76"
    assert report["environment"]["board"]["value"] == "emulated Cortex-A76"
    (cost,) = load_costs(tmp_path / "report" / "cost.json")
    assert cost.counts["dot"] > 5_000
    # the same again: nothing but the code that runs decides the count. Where the kernel forbids fixed addresses
    # (containers), hash tables of the interpreter were seen to add 1.4% to the count of so small a net
    again = count(arm, "cortex-a76", bundle)
    fixed = subprocess.run(["setarch", "-R", "true"], capture_output=True).returncode == 0
    assert again["instructions"] == pytest.approx(cost.counts["instructions"], rel=0 if fixed else 2e-2)
    # the core without dot products does the same work by other instructions, and more of them
    other = count(arm, "cortex-a72", bundle)
    assert other["dot"] == 0
    assert other["multiply"] > cost.counts["multiply"]

    # the gate: kept answers against themselves, then against a baseline that was one percent cheaper
    baseline = tmp_path / "report" / "cost.json"
    assert main([*command, "--cost-baseline", str(baseline)]) == 0
    told = json.loads(baseline.read_text())
    told["costs"][0]["counts"]["instructions"] = int(cost.counts["instructions"] / 1.01)
    (tmp_path / "cheaper.json").write_text(json.dumps(told))
    assert len(compare_costs(load_costs(tmp_path / "cheaper.json"), [cost])) == 1
    assert main([*command, "--cost-baseline", str(tmp_path / "cheaper.json")]) == 3
    assert "instructions" in capsys.readouterr().err


COUNTED = """
import os
import numpy as np

def marked(work):
    for mark, then in ((0x45560001, work), (0x45560002, lambda: None)):
        try:
            os.getpgid(mark)
        except OSError:
            then()

a = np.ones(1_000_000, np.float32)
b = np.empty_like(a)
np.copyto(b, a)
marked(lambda: None)
marked(lambda: np.copyto(b, a))
"""


def test_the_counter_counts_what_is_known_beforehand(arm, tmp_path):
    done = arm("cortex-a72", "-c", COUNTED, count_into=tmp_path / "counts")
    assert done.returncode == 0, done.stderr
    empty, copied = (json.loads(line) for line in (tmp_path / "counts").read_text().splitlines())
    # 4,000,000 bytes are read and written once; the interpreter's own share is the difference of some thousands
    assert copied["bytes_loaded"] - empty["bytes_loaded"] == pytest.approx(4_000_000, rel=0.01)
    assert copied["bytes_stored"] - empty["bytes_stored"] == pytest.approx(4_000_000, rel=0.01)
    assert empty["dot"] == copied["dot"] == 0
    assert 0 < empty["instructions"] < 20_000
