from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevision.devices.boards import BOARDS
from edgevision.devices.cores import CORES
from edgevision.devices.cpu import CpuInfo
from edgevision.devices.environment import environment
from edgevision.devices.figures import Figure
from edgevision.devices.registry import (
    all_peaks,
    board,
    cpu_peak,
    describe,
    gpu_peak,
    isa,
    match_board,
    match_cpu,
    match_environment,
    names,
    recognize,
)
from edgevision.errors import UsageError
from tests.devices.trees import A72, cpufreq, cpuinfo, jetson_orin, pc, raspberry_pi, rk3588, write


def figures(value: object) -> list[Figure]:
    """Every figure below a value."""
    if isinstance(value, Figure):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [figure for item in value for figure in figures(item)]
    return figures(list(vars(value).values())) if hasattr(value, "__dataclass_fields__") else []


@pytest.mark.parametrize("name", names())
def test_every_figure_has_a_source_and_sense(name: str) -> None:
    found = figures(BOARDS[name] if name in BOARDS else CORES[name])
    for figure in found:
        assert len(figure.source) > 10, figure
        assert isinstance(figure.value, str) or figure.number > 0, figure
        assert figure.unit in {"", "GB", "GB/s", "MHz", "W", "TFLOPS", "TOPS", "operations per cycle"}, figure
    json.dumps(describe(name), allow_nan=False)


@pytest.mark.parametrize("name", BOARDS)
def test_boards_are_made_of_known_cores_and_narrower_is_not_slower(name: str) -> None:
    device = BOARDS[name]
    assert all(cluster.core in CORES for cluster in device.clusters)
    assert device.memory is not None
    assert device.bandwidth is not None
    assert "neon" in isa(device)
    for rates in all_peaks(device).values():
        known = [rates[precision].number for precision in ("fp32", "fp16", "int8") if precision in rates]
        assert known == sorted(known)


@pytest.mark.parametrize("name", CORES)
def test_dot_products_and_int8_rates_agree(name: str) -> None:
    core = CORES[name]
    if not core.rates:
        return
    gain = core.rates["int8"].number / core.rates["fp32"].number
    quick = {"dotprod", "i8mm", "avx512_vnni", "avx_vnni", "amx_int8"} & set(core.isa)
    # four 8-bit products in the place of one 32-bit one, and at most half of that without such an instruction
    assert gain >= 4 if quick else gain <= 2


def test_rates_agree_with_what_vendors_publish() -> None:
    # NVIDIA: Orin Nano 8GB 20 dense TOPS (rounded), Orin Nano Super 67 sparse, AGX Orin 64GB 171 sparse of the GPU
    for name, dense in (("jetson-orin-nano", 20), ("jetson-orin-nano-super", 33.5), ("jetson-agx-orin", 85.5)):
        figure = gpu_peak(BOARDS[name], "int8")
        assert figure is not None
        assert figure.number == pytest.approx(dense, rel=0.03)
    # of the modules with two DLA the sum is what the data sheet calls sparse: Orin NX 16GB 100, AGX Orin 32GB 200
    for name, sparse in (("jetson-orin-nx", 100), ("jetson-agx-orin-32gb", 200)):
        units = BOARDS[name].accelerators
        total = 2 * (units["gpu"]["int8"].number + units["dla"]["int8"].number)
        assert total == pytest.approx(sparse, rel=0.02)


def test_a_peak_is_cores_times_clock_times_rate() -> None:
    pi = BOARDS["raspberry-pi-5"]
    one, every = cpu_peak(pi, "fp32", 1), cpu_peak(pi, "fp32")
    assert one is not None
    assert every is not None
    assert (one.number, every.number) == (38.4, 153.6)  # 2.4 GHz × 16
    assert every.verified
    # the big cores of an RK3588 come first
    big, both = cpu_peak(BOARDS["rk3588"], "int8", 4), cpu_peak(BOARDS["rk3588"], "int8", 5)
    assert big is not None
    assert both is not None
    assert both.number - big.number == pytest.approx(1.8 * 32, abs=0.1)
    # no FP16 arithmetic on A72: reckoned in FP32
    assert cpu_peak(BOARDS["raspberry-pi-4"], "fp16") == cpu_peak(BOARDS["raspberry-pi-4"], "fp32")
    # NVIDIA publishes no rates of Carmel
    assert cpu_peak(BOARDS["jetson-xavier-nx"], "fp32") is None
    assert gpu_peak(BOARDS["jetson-nano"], "int8") == BOARDS["jetson-nano"].accelerators["gpu"]["fp16"]
    assert gpu_peak(pi, "fp16") is None


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (raspberry_pi, "raspberry-pi-4"),
        (lambda root: raspberry_pi(root, 5), "raspberry-pi-5"),
        (jetson_orin, "jetson-orin-nano"),
        (rk3588, "rk3588"),
    ],
)
def test_boards_are_recognized(make, name: str, tmp_path: Path) -> None:
    found = recognize(make(tmp_path))
    assert (found.name, found.device) == (name, BOARDS[name])
    assert "device tree" in found.how


@pytest.mark.parametrize(
    ("model", "compatible", "name"),
    [
        ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", [], "jetson-orin-nano-super"),
        ("anything", ["nvidia,p3768-0000+p3767-0005-super", "nvidia,p3767-0005"], "jetson-orin-nano-super"),
        ("anything", ["nvidia,p3768-0000+p3767-0004", "nvidia,tegra234"], "jetson-orin-nano-4gb"),
        ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", ["nvidia,p3768-0000+p3767-0001"],
         "jetson-orin-nx-8gb"),
        ("NVIDIA Jetson AGX Orin Developer Kit", ["nvidia,p3737-0000+p3701-0005"], "jetson-agx-orin"),
        ("NVIDIA Jetson AGX Thor Developer Kit", [], "jetson-agx-thor"),
        ("NVIDIA Jetson Nano Developer Kit", ["nvidia,p3450-0000", "nvidia,tegra210"], "jetson-nano"),
        ("Raspberry Pi 3 Model B Plus Rev 1.3", [], "raspberry-pi-3b-plus"),
        ("Radxa ZERO 3", ["radxa,zero3", "rockchip,rk3566"], "rk3566"),
    ],
)  # fmt: skip
def test_device_trees(model: str, compatible: list[str], name: str) -> None:
    found = match_board(model, compatible)
    assert found is not None
    assert found.name == name


def test_an_unknown_board_is_made_of_its_cores(tmp_path: Path) -> None:
    files = {"proc/device-tree/model": "Pine64 RockPro64\0", "proc/cpuinfo": cpuinfo(A72, A72)}
    write(tmp_path, {**files, **cpufreq(2, now=408, highest=2000)})
    cpu = CpuInfo("Cortex-A72", "aarch64", 2, 2, ("neon",))
    found = match_cpu(cpu, 2000)
    assert found.name == "cortex-a72"
    assert found.device is not None
    peak = cpu_peak(found.device, "fp32")
    assert peak is not None
    assert peak.number == 32.0  # 2 × 2 GHz × 8
    assert found.device.bandwidth is None
    assert "pine64 rockpro64" in recognize(tmp_path).how.lower()


def test_mixed_cores_are_all_counted() -> None:
    cpu = CpuInfo("4× Cortex-A55 + 4× Cortex-A76", "aarch64", 8, 8, ("neon", "dotprod"))
    found = match_cpu(cpu, 2400)
    assert found.device is not None
    assert [(cluster.count, cluster.core) for cluster in found.device.clusters] == [
        (4, "cortex-a76"),
        (4, "cortex-a55"),
    ]


@pytest.mark.parametrize(
    ("features", "name"),
    [
        (("avx2", "avx512f", "avx512bw", "avx512_vnni", "amx_int8"), "x86-amx"),
        (("avx2", "avx512f", "avx512bw", "avx512_vnni"), "x86-avx512-vnni"),
        (("avx2", "avx_vnni"), "x86-avx-vnni"),
        (("avx2", "avx512f", "avx512bw"), "x86-avx512"),
        (("avx2",), "x86-avx2"),
        (("sse4_1",), None),
        (None, None),
    ],
)
def test_x86_is_told_by_its_instructions(features: tuple[str, ...] | None, name: str | None) -> None:
    assert match_cpu(CpuInfo("Xeon", "x86_64", 4, 4, features), 3000).name == name


def test_without_a_clock_nothing_more_follows() -> None:
    found = match_cpu(CpuInfo("Xeon", "x86_64", 4, 4, ("avx2",)), 0)
    assert (found.name, found.device) == ("x86-avx2", None)
    assert "no clock" in found.how


def test_records_of_machines_are_matched_as_the_machines_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert match_environment(environment(raspberry_pi(tmp_path / "pi"))).name == "raspberry-pi-4"
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    found = match_environment(environment(pc(tmp_path / "pc")))
    assert found.name == "x86-avx512-vnni"
    assert found.device is not None
    assert found.device.clusters[0].mhz.value == 4600


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["value", "name", "x"]), inner),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(["cpu", "board", "max_clock_mhz", "clock_mhz"]), JSON))
def test_any_record_of_a_machine_is_answered(record: dict[str, object]) -> None:
    found = match_environment(record)
    assert found.how


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30), st.lists(st.text(max_size=20), max_size=3))
def test_any_device_tree_is_answered(model: str, compatible: list[str]) -> None:
    found = match_board(model, compatible)
    assert found is None or found.name in BOARDS


def test_names_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean raspberry-pi-5"):
        describe("raspbery-pi-5")
    with pytest.raises(UsageError, match="is a core; an estimate needs a board, such as raspberry-pi-5"):
        board("cortex-a76")
    with pytest.raises(UsageError, match="not in the device registry"):
        board("this", tmp_path)
