"""`environment`: what a measurement has to be read beside. A reading that cannot be had says why."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgevision.devices.cpu import cpu_info
from edgevision.devices.gpu import nvidia_gpus
from edgevision.devices.sensors import number, text

# distributions whose version explains a number; looked up by metadata, never imported
PACKAGES = (
    "edgevision",
    "numpy",
    "pillow",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-directml",
    "openvino",
    "ncnn",
    "tensorrt",
    "torch",
    "onnx",
    "onnxscript",
    "pnnx",
)


def environment(root: Path = Path("/")) -> dict[str, Any]:
    """Describe this machine in plain values, as JSON takes them; never fails.

    Clocks, governor, temperature, memory and load are *readings*: ``{"value": …}``, or
    ``{"value": None, "why": "not available: …"}``.

    Args:
        root: where ``proc`` and ``sys`` lie.

    Returns:
        ``cpu`` (see `CpuInfo.to_dict`), ``gpus`` (name and compute capability), ``board``, ``clock_mhz``,
        ``max_clock_mhz``, ``governor``, ``temperature_c``, ``memory_bytes``, ``load_average``, ``os``, ``kernel``,
        ``python``, ``packages`` (name → version).
    """
    gpus, why_no_gpu = nvidia_gpus()
    return {
        "cpu": cpu_info(root).to_dict(),
        "gpus": [{"name": gpu.name, "compute_capability": list(gpu.compute_capability)} for gpu in gpus],
        "why_no_gpu": why_no_gpu,
        "board": board(root),
        "clock_mhz": clock(root),
        "max_clock_mhz": max_clock(root),
        "governor": governor(root),
        "temperature_c": temperature(root),
        "memory_bytes": memory(root),
        "load_average": load_average(),
        "os": os_name(root),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": packages(),
    }


def packages(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Versions of the installed ones among these distributions, without importing them."""
    versions = {name: package_version(name) for name in names}
    return {name: found for name, found in versions.items() if found is not None}


def package_version(name: str) -> str | None:
    """Version of a distribution by its metadata; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def reading(value: Any) -> dict[str, Any]:
    """A reading that could be had."""
    return {"value": value}


def no_reading(why: str) -> dict[str, Any]:
    """A reading that could not be had, and why."""
    return {"value": None, "why": f"not available: {why}"}


def board(root: Path = Path("/")) -> dict[str, Any]:
    """Name of a single-board computer from its device tree, e.g. ``"Raspberry Pi 5 Model B Rev 1.0"``."""
    try:
        return reading((root / "proc/device-tree/model").read_text(errors="replace").strip("\0\n "))
    except OSError:
        return no_reading("this machine has no device tree")


def clock(root: Path = Path("/")) -> dict[str, Any]:
    """Clock of each core now, MHz: from cpufreq, else from /proc/cpuinfo."""
    paths = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")
    values = [value / 1000 for path in sorted(paths) if (value := number(path)) is not None]
    if not values:
        values = _cpuinfo_clocks(root)
    return reading([round(value) for value in values]) if values else no_reading("the kernel shows no clock")


def max_clock(root: Path = Path("/")) -> dict[str, Any]:
    """Highest clock of any core, MHz."""
    paths = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/cpuinfo_max_freq")
    values = [value / 1000 for path in paths if (value := number(path)) is not None]
    return reading(round(max(values))) if values else no_reading("no cpufreq (usual in virtual machines)")


def governor(root: Path = Path("/")) -> dict[str, Any]:
    """Frequency governors in use; ``performance`` makes measurements repeatable."""
    paths = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")
    found = {name for path in paths if (name := text(path))}
    return reading(", ".join(sorted(found))) if found else no_reading("no cpufreq (usual in virtual machines)")


def temperature(root: Path = Path("/")) -> dict[str, Any]:
    """Temperature of every thermal zone or processor sensor, name → °C."""
    found: dict[str, float] = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        _sensor(found, zone / "type", zone / "temp")
    for sensor in sorted((root / "sys/class/hwmon").glob("hwmon*/temp*_input")):
        if text(sensor.parent / "name") in {"coretemp", "k10temp", "zenpower"}:
            _sensor(found, sensor.with_name(sensor.name.replace("_input", "_label")), sensor)
    return reading(found) if found else no_reading("the kernel shows no thermal zone (usual in virtual machines)")


def memory(root: Path = Path("/")) -> dict[str, Any]:
    """Main memory, bytes."""
    for line in (text(root / "proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            return reading(int(line.split()[1]) * 1024)
    try:
        return reading(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return no_reading("the system does not say")


def load_average() -> dict[str, Any]:
    """Processes that wanted a core, mean of the last minute: above 0 means somebody else measures, too."""
    try:
        return reading(round(os.getloadavg()[0], 2))
    except (AttributeError, OSError):
        return no_reading("the system keeps no load average")


def os_name(root: Path = Path("/")) -> str:
    """Name of the operating system, with the L4T release on a Jetson."""
    name = platform.platform(terse=True)
    if sys.platform == "linux":
        for line in (text(root / "etc/os-release") or "").splitlines():
            if line.startswith("PRETTY_NAME="):
                name = line.partition("=")[2].strip().strip('"')
    tegra = (text(root / "etc/nv_tegra_release") or "").splitlines()
    return f"{name}, L4T {tegra[0].lstrip('# ')}" if tegra else name


def _sensor(found: dict[str, float], label: Path, value: Path) -> None:
    # a sleeping sensor reads 0 or -256000 (Jetson's PMIC die); those are no temperatures
    millidegrees = number(value)
    if millidegrees is None or millidegrees <= 0:
        return
    name = text(label) or value.parent.name
    while name in found:
        name += "'"
    found[name] = round(millidegrees / 1000, 1)


def _cpuinfo_clocks(root: Path) -> list[float]:
    values = []
    for line in (text(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "cpu MHz":
            try:
                values.append(float(value))
            except ValueError:
                continue
    return values
