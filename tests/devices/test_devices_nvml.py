from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest

from edgevision.devices import nvml
from edgevision.devices.conditions import flags, read_conditions
from edgevision.devices.energy import EnergyMeter
from edgevision.devices.nvml import gpu_energy, gpu_readings
from tests.devices.trees import write


class FakeNvml:
    """The calls of libnvidia-ml that are made, for GPUs given by their readings; what is missing is unsupported (3)."""

    def __init__(self, *gpus: dict[str, Any], init: int = 0) -> None:
        self.gpus, self.init = gpus, init

    def nvmlInit_v2(self) -> int:  # noqa: N802 - NVML's names
        return self.init

    def nvmlDeviceGetCount_v2(self, out) -> int:  # noqa: N802
        out._obj.value = len(self.gpus)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index, out) -> int:  # noqa: N802
        out._obj.value = index.value + 1
        return 0

    def _give(self, device, out, key: str) -> int:
        gpu = self.gpus[device.value - 1]
        if key not in gpu:
            return 3
        out._obj.value = gpu[key]
        return 0

    def nvmlDeviceGetName(self, device, out, size) -> int:  # noqa: N802
        out.value = self.gpus[device.value - 1]["name"].encode()
        return 0

    def nvmlDeviceGetClockInfo(self, device, kind: int, out) -> int:  # noqa: N802
        return self._give(device, out, "clock")

    def nvmlDeviceGetTemperature(self, device, sensor: int, out) -> int:  # noqa: N802
        return self._give(device, out, "temperature")

    def nvmlDeviceGetPowerUsage(self, device, out) -> int:  # noqa: N802
        return self._give(device, out, "milliwatts")

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, device, out) -> int:  # noqa: N802
        return self._give(device, out, "reasons")

    def nvmlDeviceGetTotalEnergyConsumption(self, device, out) -> int:  # noqa: N802
        return self._give(device, out, "millijoules")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch):
    def become(library: Any) -> None:
        nvml._library.cache_clear()

        def load(name: str) -> Any:
            if library is None:
                raise OSError(f"{name}: cannot open shared object file")
            return library

        monkeypatch.setattr(ctypes, "CDLL", load)

    yield become
    nvml._library.cache_clear()


A10 = {"name": "NVIDIA A10", "clock": 1695, "temperature": 61, "milliwatts": 149_500, "reasons": 0x1 | 0x4 | 0x20}


def test_readings_of_gpus(driver) -> None:
    driver(FakeNvml({**A10, "millijoules": 5_000}, {"name": "NVIDIA T4"}))
    assert gpu_readings().value == {
        "0": {
            "name": "NVIDIA A10",
            "clock_mhz": 1695,
            "temperature_c": 61,
            "power_w": 149.5,
            "throttling": ["power cap", "thermal slowdown"],
        },
        "1": {"name": "NVIDIA T4"},
    }
    assert gpu_energy() == {"gpu 0": {"joules": 5.0, "range_joules": 0.0}}


@pytest.mark.parametrize("library", [None, FakeNvml(init=9), FakeNvml()])
def test_without_a_gpu_it_says_so(library: FakeNvml | None, driver) -> None:
    driver(library)
    assert not gpu_readings().available
    assert "NVML" in gpu_readings().why
    assert gpu_energy() == {}


def test_another_machines_tree_is_not_this_machines_driver(driver, tmp_path: Path) -> None:
    driver(FakeNvml({**A10, "millijoules": 1}))
    assert not gpu_readings(tmp_path).available
    assert gpu_energy(tmp_path) == {}


def test_the_clock_of_a_jetsons_gpu(tmp_path: Path) -> None:
    write(tmp_path, {"sys/class/devfreq/17000000.gpu/cur_freq": "624750000\n", "sys/class/devfreq/vic/cur_freq": "1\n"})
    assert gpu_readings(tmp_path).value == {"17000000.gpu": {"clock_mhz": 625}}


def test_a_gpu_that_throttles_is_flagged_and_its_energy_counts(driver) -> None:
    driver(FakeNvml({**A10, "reasons": 0, "millijoules": 1_000_000}))
    before = read_conditions()
    with EnergyMeter() as meter:
        driver(FakeNvml({**A10, "millijoules": 1_003_000}))
    after = read_conditions()
    assert any("GPU 0 power cap" in flag for flag in flags(before, None, after))
    found = meter.per_inference(2)
    # 3 J by the GPU's counter, and what a readable RAPL of the test's own machine adds
    assert found.available
    assert found.value >= 1.5
