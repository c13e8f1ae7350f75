from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgevision.devices.cpu import CpuInfo
from edgevision.devices.doctor import RUNTIMES, describe, doctor, verdicts
from edgevision.devices.environment import (
    board,
    clock,
    environment,
    governor,
    max_clock,
    memory,
    os_name,
    packages,
    temperature,
)
from edgevision.devices.gpu import Gpu
from edgevision.devices.jetpack import JETPACKS
from tests.devices.trees import jetson_orin


def cpu(architecture: str, *features: str) -> CpuInfo:
    return CpuInfo("cpu", architecture, 4, 4, features)


XEON = cpu("x86_64", "avx2", "avx512f", "avx512_vnni")
ALDER_LAKE = cpu("x86_64", "avx2", "avx_vnni")
HASWELL = cpu("x86_64", "avx2")
ATOM = cpu("x86_64", "sse4_1")
A53 = cpu("aarch64", "neon")
A76 = cpu("aarch64", "neon", "dotprod", "fp16")
ARMV7 = cpu("armv7l", "neon")
RISCV = cpu("riscv64")


@pytest.mark.parametrize(
    ("machine", "onnxruntime", "openvino", "ncnn"),
    [
        (XEON, True, True, True),
        (ALDER_LAKE, True, True, True),
        (HASWELL, None, None, None),
        (ATOM, False, False, False),
        (A76, True, None, True),
        (A53, False, False, False),
        (ARMV7, False, False, False),
        (RISCV, None, None, None),
        (CpuInfo("?", "x86_64", 1, 1, None, "not readable"), None, None, None),
    ],
)
def test_verdicts_of_processors(
    machine: CpuInfo, onnxruntime: bool | None, openvino: bool | None, ncnn: bool | None
) -> None:
    found = verdicts(machine)
    assert found["onnxruntime"].int8_expected_to_help is onnxruntime
    assert found["openvino"].int8_expected_to_help is openvino
    assert found["ncnn"].int8_expected_to_help is ncnn
    assert all(verdict.why for verdict in found.values())


@pytest.mark.parametrize(
    ("machine", "target", "words"),
    [
        (XEON, "onnxruntime", "avx512_vnni"),
        (ALDER_LAKE, "openvino", "avx_vnni"),
        (XEON, "ncnn", "depthwise layers stay in float"),
        (HASWELL, "onnxruntime", "saturate at 16 bits"),
        (A53, "ncnn", "no dotprod"),
        (A76, "ncnn", "dotprod"),
        (RISCV, "ncnn", "riscv64"),
    ],
)
def test_verdicts_give_their_reason(machine: CpuInfo, target: str, words: str) -> None:
    assert words in verdicts(machine)[target].why


@pytest.mark.parametrize(
    ("gpus", "expected", "words"),
    [
        ((), None, "no driver, says the test"),
        ((Gpu("Jetson Nano", (5, 3)),), False, "no INT8 arithmetic"),
        ((Gpu("Jetson TX2", (6, 2)),), False, "no INT8 arithmetic"),
        ((Gpu("GTX 1080", (6, 1)),), True, "dp4a"),
        ((Gpu("Xavier", (7, 2)),), True, "INT8 tensor cores"),
        ((Gpu("Orin", (8, 7)),), True, "INT8 tensor cores"),
    ],
)
def test_verdict_of_gpus(gpus: tuple[Gpu, ...], expected: bool | None, words: str) -> None:
    verdict = verdicts(XEON, gpus, "no driver, says the test")["tensorrt"]
    assert verdict.int8_expected_to_help is expected
    assert words in verdict.why


def test_the_keys_of_the_doctors_report_are_stable() -> None:
    report = doctor()
    assert set(report) == {"environment", "device", "jetpack", "findings", "runtimes", "targets"}
    assert set(report["device"]) == {"name", "title", "how"}
    assert set(report["runtimes"]) == set(report["targets"]) == set(RUNTIMES)
    for runtime in report["runtimes"].values():
        assert set(runtime) == {"installed", "version", "install", "doubts"}
    for target in report["targets"].values():
        assert set(target) == {"int8_expected_to_help", "why"}
    assert json.loads(json.dumps(report)) == report


def test_runtimes_are_found_by_what_is_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    info = site / "ncnn-9.8.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ncnn\nVersion: 9.8\n")
    (site / "ncnn.py").write_text("raise RuntimeError('the doctor must not import runtimes')\n")
    # a folder of the name of a runtime is no runtime
    (site / "openvino").mkdir()
    monkeypatch.setattr("sys.path", [str(site)])
    for name in RUNTIMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    found = doctor()["runtimes"]
    assert found["ncnn"] == {
        "installed": True,
        "version": "9.8",
        "install": 'pip install "edgevision[ncnn]"',
        "doubts": [],
    }
    assert found["openvino"] == {
        "installed": False,
        "version": None,
        "install": 'pip install "edgevision[openvino]"',
        "doubts": [],
    }


def test_on_a_jetson_tensorrt_comes_with_jetpack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert doctor()["runtimes"]["tensorrt"]["install"] == "sudo apt-get install python3-libnvinfer"


def test_the_doctor_imports_no_runtime() -> None:
    code = (
        "import sys\nfrom edgevision.devices.doctor import doctor\ndoctor()\n"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'openvino', 'ncnn', 'tensorrt', 'numpy'} & set(sys.modules)))"
    )
    environment = {"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"


def test_the_description_says_it_all() -> None:
    report = doctor()
    report["runtimes"]["openvino"] = {"installed": False, "version": None, "install": "pip install it", "doubts": []}
    report["runtimes"]["ncnn"]["doubts"] = [{"what": "it is odd", "mend": "mend it so"}]
    report["jetpack"] = JETPACKS[3].to_dict()
    report["environment"]["temperature_c"] = {"value": {"cpu-thermal": 51.5}}
    report["environment"]["gpus"] = [{"name": "Orin", "compute_capability": [8, 7]}]
    text = describe(report)
    assert report["environment"]["cpu"]["name"] in text
    assert "openvino missing: pip install it" in text
    assert "it is odd" in text
    assert "to mend it: mend it so" in text
    assert "TensorRT 10.3, CUDA 12.6" in text
    assert report["device"]["how"] in text
    assert "cpu-thermal 51.5" in text
    assert "Orin, compute capability 8.7" in text
    for target in report["targets"].values():
        assert target["why"] in text


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_readings_of_a_board(tmp_path: Path) -> None:
    write(tmp_path / "proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0")
    write(tmp_path / "proc/meminfo", "MemTotal:        8252900 kB\nMemFree: 1 kB\n")
    for core in range(4):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{core}/cpufreq"
        write(folder / "scaling_cur_freq", f"{1500000 + core * 1000}\n")
        write(folder / "cpuinfo_max_freq", "2400000\n")
        write(folder / "scaling_governor", "ondemand\n")
    write(tmp_path / "sys/class/thermal/thermal_zone0/type", "cpu-thermal\n")
    write(tmp_path / "sys/class/thermal/thermal_zone0/temp", "51234\n")
    # a sleeping sensor of a Jetson
    write(tmp_path / "sys/class/thermal/thermal_zone1/type", "PMIC-Die\n")
    write(tmp_path / "sys/class/thermal/thermal_zone1/temp", "-256000\n")
    write(tmp_path / "etc/os-release", 'ID=debian\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n')
    write(tmp_path / "etc/nv_tegra_release", "# R36 (release), REVISION: 4.3, GCID: 1\n# more\n")
    assert board(tmp_path) == {"value": "Raspberry Pi 5 Model B Rev 1.0"}
    assert memory(tmp_path) == {"value": 8252900 * 1024}
    assert clock(tmp_path) == {"value": [1500, 1501, 1502, 1503]}
    assert max_clock(tmp_path) == {"value": 2400}
    assert governor(tmp_path) == {"value": "ondemand"}
    assert temperature(tmp_path) == {"value": {"cpu-thermal": 51.2}}
    assert os_name(tmp_path) == "Debian GNU/Linux 12 (bookworm), L4T R36 (release), REVISION: 4.3, GCID: 1"


def test_readings_of_a_pc(tmp_path: Path) -> None:
    write(tmp_path / "proc/cpuinfo", "cpu MHz : 2700.4\ncpu MHz : unknown\n")
    write(tmp_path / "sys/class/hwmon/hwmon2/name", "coretemp\n")
    write(tmp_path / "sys/class/hwmon/hwmon2/temp1_label", "Package id 0\n")
    write(tmp_path / "sys/class/hwmon/hwmon2/temp1_input", "43000\n")
    # a disk's sensor says nothing of the processor
    write(tmp_path / "sys/class/hwmon/hwmon3/name", "nvme\n")
    write(tmp_path / "sys/class/hwmon/hwmon3/temp1_input", "33000\n")
    assert clock(tmp_path) == {"value": [2700]}
    assert temperature(tmp_path) == {"value": {"Package id 0": 43.0}}


def test_readings_that_cannot_be_had_say_why(tmp_path: Path) -> None:
    for read in (board, clock, max_clock, governor, temperature):
        found = read(tmp_path)
        assert found["value"] is None
        assert found["why"].startswith("not available: ")
    found = environment(tmp_path)
    assert found["cpu"]["logical_cores"] >= 1
    assert json.loads(json.dumps(found)) == found


def test_packages_are_those_installed() -> None:
    found = packages(("numpy", "no-such-distribution"))
    assert list(found) == ["numpy"]
    assert found["numpy"][0].isdigit()


def test_the_doctor_knows_a_jetson_by_its_device_tree(tmp_path: Path) -> None:
    report = doctor(jetson_orin(tmp_path))
    assert report["device"]["name"] == "jetson-orin-nano"
    assert report["jetpack"]["name"] == "6.1 and 6.2.x"
    assert report["jetpack"]["tensorrt"]["value"] == "10.3"
    text = describe(report)
    assert "NVIDIA Jetson Orin Nano Developer Kit" in text
    assert "JetPack       6.1 and 6.2.x: TensorRT 10.3, CUDA 12.6" in text
