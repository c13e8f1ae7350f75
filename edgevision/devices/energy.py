"""Energy and power: counters (RAPL, NVIDIA's driver), sensors integrated over time (INA3221, hwmon, Pi 5's PMIC)."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgevision.devices.nvml import gpu_energy
from edgevision.devices.sensors import Reading, command, number, text

# rails that carry the whole module, by JetPack and module; without one of them the sum of the rails is taken
_TOTAL_RAILS = ("VDD_IN", "POM_5V_IN", "VIN", "VDD_5V_IN")

# INA3221 averages over tens of milliseconds; a program that is asked takes as long
_SAMPLE_EVERY_S = 0.1

# a channel of this label is not connected
_NOT_CONNECTED = {"NC", ""}


def energy_counters(root: Path = Path("/")) -> Reading:
    """Energy counters, domain → ``joules`` so far and ``range_joules``, after which it starts again at 0.

    From the kernel's powercap interface (Intel's and AMD's RAPL), and from NVIDIA's driver.
    """
    found = gpu_energy(root)
    forbidden = False
    for folder in sorted((root / "sys/class/powercap").glob("*-rapl:*")):
        try:
            microjoules = int((folder / "energy_uj").read_text())
        except PermissionError:
            forbidden = True
            continue
        except (OSError, ValueError):
            continue
        name = text(folder / "name") or folder.name
        if folder.name.count(":") > 1:  # a part of a package: say of which
            name = f"{text(folder.parent / folder.name.rpartition(':')[0] / 'name') or 'package'} {name}"
        span = number(folder / "max_energy_range_uj") or 0
        found[name] = {"joules": microjoules / 1e6, "range_joules": span / 1e6}
    if found:
        return Reading(found, "J")
    if forbidden:
        why = "RAPL's energy_uj is for root alone (since CVE-2020-8694): sudo chmod a+r /sys/class/powercap/*/energy_uj"
        return Reading(unit="J", why=why)
    return Reading(unit="J", why="no powercap energy counter (RAPL)")


def power(root: Path = Path("/"), *, commands: bool = True) -> Reading:
    """Power drawn now, rail → W, and ``total``: the rail that feeds the module, else the sum of the rails.

    INA3221 of a Jetson (as hwmon from JetPack 5 on, as iio in JetPack 4), other hwmon power sensors, or the power
    chip of a Raspberry Pi 5.
    """
    rails = _ina3221_hwmon(root) or _ina3221_iio(root) or _hwmon_power(root)
    if not rails and commands:
        said = command(root, ("usr/bin/vcgencmd",), "pmic_read_adc")
        rails = parse_pmic(said) if said else {}
    if not rails:
        return Reading(unit="W", why="no power sensor (INA3221, hwmon, Raspberry Pi 5's PMIC)")
    total = next((rails[name] for name in _TOTAL_RAILS if name in rails), sum(rails.values()))
    return Reading({**rails, "total": round(total, 6)}, "W")


def parse_pmic(said: str) -> dict[str, float]:
    """Rail → W from ``vcgencmd pmic_read_adc``: lines of ``NAME_A current(n)=…A`` and ``NAME_V volt(n)=…V``."""
    figures: dict[str, dict[str, float]] = {"A": {}, "V": {}}
    for match in re.finditer(r"(\w+)_([AV])\s+\w+\(\d+\)=(\d+(?:\.\d+)?)[AV]", said):
        figures[match[2]][match[1]] = float(match[3])
    amperes, volts = figures["A"], figures["V"]
    return {name: round(amperes[name] * volts[name], 6) for name in amperes if name in volts}


def energy_of(
    run: Callable[[], object],
    *,
    seconds: float = 1.0,
    root: Path = Path("/"),
    clock: Callable[[], float] = time.monotonic,
) -> Reading:
    """Energy of one call of ``run``, J, idle consumption included: called again and again for ``seconds``.

    By counters, read before and after; else by power sensors, read between calls, not oftener than every 0.1 s, and
    integrated. A loop of its own: reading sensors has no place in a loop whose times count.
    """
    before = energy_counters(root)
    sensor = Reading() if before.available else power(root)
    if not (before.available or sensor.available):
        return Reading(unit="J", why=f"{before.why}; {sensor.why}")
    begun = clock()
    samples = [(begun, float(sensor.value["total"]))] if sensor.available else []
    calls, now = 0, begun
    while calls == 0 or now - begun < seconds:
        run()
        calls, now = calls + 1, clock()
        last = now - begun >= seconds
        if samples and (last or now - samples[-1][0] >= _SAMPLE_EVERY_S) and (drawn := power(root)).available:
            samples.append((now, float(drawn.value["total"])))
    joules = integrated_joules(samples) if samples else counted_joules(before.value, energy_counters(root).value or {})
    if joules is None:
        return Reading(unit="J", why="the sensor could not be read again")
    return Reading(joules / calls, "J")


def counted_joules(before: Mapping[str, Any], after: Mapping[str, Any]) -> float | None:
    """Joules between two readings of `energy_counters`: packages and their memory, each counter unwrapped once.

    None where no counter is in both, or one went backwards without a known range.
    """
    total, counted = 0.0, False
    for name, first in before.items():
        # a package's cores are part of it, its memory is not; psys is the whole platform, and would count twice
        counts = name.endswith(" dram") or name.startswith("gpu ") or (name.startswith("package") and " " not in name)
        if name not in after or not counts:
            continue
        joules = after[name]["joules"] - first["joules"]
        if joules < 0:
            if first["range_joules"] <= 0:
                return None
            joules += first["range_joules"]
        total, counted = total + joules, True
    return total if counted else None


def integrated_joules(samples: Sequence[tuple[float, float]]) -> float | None:
    """Energy under power samples ``(seconds, watts)`` by trapezoids; None with fewer than two."""
    ordered = sorted(samples)
    if len(ordered) < 2:
        return None
    pairs = itertools.pairwise(ordered)
    return sum((later - earlier) * (first + second) / 2 for (earlier, first), (later, second) in pairs)


def _ina3221_hwmon(root: Path) -> dict[str, float]:
    rails: dict[str, float] = {}
    folders = [*(root / "sys/bus/i2c/devices").glob("*/hwmon/hwmon*"), *(root / "sys/class/hwmon").glob("hwmon*")]
    for folder in _once(folders):
        if "ina3221" not in (text(folder / "name") or ""):
            continue
        for path in sorted(folder.glob("in[0-9]*_label")):
            channel = path.name[2:].removesuffix("_label")
            label = text(path) or ""
            millivolts, milliamperes = number(folder / f"in{channel}_input"), number(folder / f"curr{channel}_input")
            # channel 7 is the sum of the shunts' voltages, no rail
            if label in _NOT_CONNECTED or channel == "7" or millivolts is None or milliamperes is None:
                continue
            rails[label] = round(millivolts * milliamperes / 1e6, 6)
    return rails


def _ina3221_iio(root: Path) -> dict[str, float]:
    rails: dict[str, float] = {}
    patterns = (
        "bus/i2c/devices/*/iio:device*",
        "bus/i2c/drivers/ina3221x/*/iio:device*",
        "bus/iio/devices/iio:device*",
    )
    for folder in _once([path for pattern in patterns for path in (root / "sys").glob(pattern)]):
        for path in sorted(folder.glob("rail_name_*")):
            milliwatts = number(folder / f"in_power{path.name.removeprefix('rail_name_')}_input")
            label = text(path) or ""
            if label not in _NOT_CONNECTED and milliwatts is not None:
                rails[label] = milliwatts / 1000
    return rails


def _hwmon_power(root: Path) -> dict[str, float]:
    rails: dict[str, float] = {}
    for path in sorted((root / "sys/class/hwmon").glob("hwmon*/power[0-9]*_input")):
        if (microwatts := number(path)) is not None:
            stem = path.name.removesuffix("_input")
            label = text(path.with_name(f"{stem}_label")) or f"{text(path.parent / 'name') or path.parent.name} {stem}"
            rails[label] = microwatts / 1e6
    return rails


def _once(folders: Sequence[Path]) -> list[Path]:
    """The same sensor is linked from several places of sysfs."""
    seen: dict[Path, Path] = {}
    for folder in folders:
        try:
            seen.setdefault(folder.resolve(), folder)
        except OSError:
            continue
    return sorted(seen.values())
