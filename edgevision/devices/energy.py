"""Energy and power: counters (RAPL, NVIDIA's driver), sensors integrated over time (INA3221, hwmon, Pi 5's PMIC)."""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgevision.devices.nvml import gpu_energy
from edgevision.devices.sensors import Reading, command, guarded, number, text

# rails that carry the whole module, by JetPack and module; without one of them the sum of the rails is taken
_TOTAL_RAILS = ("VDD_IN", "POM_5V_IN", "VIN", "VDD_5V_IN")

# INA3221 averages over tens of milliseconds; a program that is asked takes as long
_SAMPLE_EVERY_S = 0.1
# times the duration of one reading: a program that is asked, as on a Raspberry Pi 5, must not become the load
_SAMPLING_SHARE = 20

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


class EnergyMeter:
    """Energy drawn while a block runs: ``with EnergyMeter() as meter: …``, then ``meter.per_inference(runs)``.

    By counters, read at both ends. Where there are none, by the power sensors, read all along by a thread of its own
    and integrated; that thread takes at most a twentieth of one core, and a run now and then waits for it. What the
    machine draws when idle is in it: it is not subtracted, since a board that sleeps and one that waits for the next
    picture draw differently.

    Args:
        root: where ``sys`` and ``usr`` lie.
        clock: seconds.
    """

    def __init__(self, root: Path = Path("/"), *, clock: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._clock = clock
        self._counters = Reading()
        self._power = Reading()
        self._every_s = _SAMPLE_EVERY_S
        self._samples: list[tuple[float, float]] = []
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._energy = Reading(unit="J", why="nothing was measured")

    def __enter__(self) -> EnergyMeter:
        self._samples.clear()
        self._counters = guarded(lambda: energy_counters(self._root))
        if not self._counters.available:
            begun = time.monotonic()
            self._power = self._sample()
            self._every_s = max(_SAMPLE_EVERY_S, _SAMPLING_SHARE * (time.monotonic() - begun))
        if self._power.available:
            self._over.clear()
            self._thread = threading.Thread(target=self._watch, name="power", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._counters.available:
            after = guarded(lambda: energy_counters(self._root))
            self._energy = _counted(self._counters.value, after.value or {})
            return
        if self._thread is None:
            self._energy = Reading(unit="J", why=f"{self._counters.why}; {self._power.why}")
            return
        self._over.set()
        self._thread.join()
        self._thread = None
        self._sample()
        joules = integrated_joules(self._samples)
        self._energy = Reading(joules, "J", "" if joules is not None else "the power sensor could not be read again")

    @property
    def source(self) -> str | None:
        """What was counted: ``package-0, package-0 dram``, or the sensor's rails ``VDD_IN``; None for nothing."""
        if self._counters.available:
            return ", ".join(name for name in self._counters.value if _counts(name)) or None
        if not self._power.available:
            return None
        rails = [name for name in self._power.value if name != "total"]
        return next((name for name in _TOTAL_RAILS if name in rails), " + ".join(rails))

    def per_inference(self, inferences: int) -> Reading:
        """The energy of one of so many inferences, J."""
        if not self._energy.available or inferences < 1:
            return self._energy if inferences else Reading(unit="J", why="no inference was run")
        return Reading(self._energy.value / inferences, "J")

    def _watch(self) -> None:
        while not self._over.wait(self._every_s):
            self._sample()

    def _sample(self) -> Reading:
        drawn = guarded(lambda: power(self._root))
        if drawn.available:
            self._samples.append((self._clock(), float(drawn.value["total"])))
        return drawn


def _counted(before: Mapping[str, Any], after: Mapping[str, Any]) -> Reading:
    joules = counted_joules(before, after)
    if joules is None:
        return Reading(unit="J", why="the energy counters cannot be compared")
    if joules == 0:
        return Reading(unit="J", why="the energy counters did not move in so short a time")
    return Reading(joules, "J")


def _counts(name: str) -> bool:
    """Whether a counter adds to the sum: a package has its cores in it, but not its memory; psys would count twice."""
    return name.endswith(" dram") or name.startswith("gpu ") or (name.startswith("package") and " " not in name)


def counted_joules(before: Mapping[str, Any], after: Mapping[str, Any]) -> float | None:
    """Joules between two readings of `energy_counters`: packages and their memory, each counter unwrapped once.

    None where no counter is in both, or one went backwards without a known range.
    """
    total, counted = 0.0, False
    for name, first in before.items():
        if name not in after or not _counts(name):
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
