"""NVIDIA GPUs' own readings: NVML through ctypes on a PC, devfreq on a Jetson. No runtime is imported."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path
from typing import Any

from edgevision.devices.sensors import Reading, number

# bit of nvmlDeviceGetCurrentClocksThrottleReasons → what slows the GPU (nvml.h); idling and settings are left out
THROTTLE_REASONS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}

_CLOCK_SM = 1
_TEMPERATURE_GPU = 0


def gpu_readings(root: Path = Path("/")) -> Reading:
    """GPU → ``clock_mhz`` and, from NVML, ``name``, ``temperature_c``, ``power_w`` and ``throttling`` (words)."""
    found: dict[str, dict[str, Any]] = {}
    for folder in sorted((root / "sys/class/devfreq").glob("*")):
        if ("gpu" in folder.name or "ga10b" in folder.name) and (hertz := number(folder / "cur_freq")) is not None:
            found[folder.name] = {"clock_mhz": round(hertz / 1e6)}
    # the driver is this machine's, whatever tree is read
    library = _library() if root == Path("/") else None
    if library is not None:
        for index, device in enumerate(_devices(library)):
            found[str(index)] = _reading(library, device)
    return Reading(found) if found else Reading(why="no NVIDIA GPU that can be asked (NVML, devfreq)")


def gpu_energy(root: Path = Path("/")) -> dict[str, dict[str, float]]:
    """Energy counters of GPUs since their driver was loaded, as `energy.energy_counters` has them."""
    library = _library() if root == Path("/") else None
    found = {}
    for index, device in enumerate([] if library is None else _devices(library)):
        millijoules = ctypes.c_ulonglong()
        if library is not None and not library.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(millijoules)):
            found[f"gpu {index}"] = {"joules": millijoules.value / 1e3, "range_joules": 0.0}
    return found


@cache
def _library() -> Any:
    """NVML, started; None where there is none. Kept: starting it takes longer than a reading may."""
    try:
        library = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
    except OSError:
        return None
    return None if library.nvmlInit_v2() else library


def _devices(library: Any) -> list[ctypes.c_void_p]:
    count = ctypes.c_uint()
    if library.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return []
    devices = []
    for index in range(count.value):
        device = ctypes.c_void_p()
        if not library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(device)):
            devices.append(device)
    return devices


def _reading(library: Any, device: ctypes.c_void_p) -> dict[str, Any]:
    """What one GPU tells; what it does not support is left out."""
    found: dict[str, Any] = {}
    name = ctypes.create_string_buffer(96)
    if not library.nvmlDeviceGetName(device, name, ctypes.c_uint(len(name))):
        found["name"] = name.value.decode(errors="replace")
    value = ctypes.c_uint()
    if not library.nvmlDeviceGetClockInfo(device, _CLOCK_SM, ctypes.byref(value)):
        found["clock_mhz"] = value.value
    if not library.nvmlDeviceGetTemperature(device, _TEMPERATURE_GPU, ctypes.byref(value)):
        found["temperature_c"] = value.value
    if not library.nvmlDeviceGetPowerUsage(device, ctypes.byref(value)):
        found["power_w"] = value.value / 1e3
    reasons = ctypes.c_ulonglong()
    if not library.nvmlDeviceGetCurrentClocksThrottleReasons(device, ctypes.byref(reasons)):
        found["throttling"] = [words for bit, words in THROTTLE_REASONS.items() if reasons.value & bit]
    return found
