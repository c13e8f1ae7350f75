"""`read_conditions`: what a measurement was taken under; `flags`: what of it makes the measurement doubtful."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edgevision.devices import sensors
from edgevision.devices.cpu import cpu_info
from edgevision.devices.energy import energy_counters, power
from edgevision.devices.nvml import gpu_readings
from edgevision.devices.sensors import Reading, guarded, memory_available, text

# others may use this share of the machine before they are a busy neighbour: daemons and the kernel always run a little
_NEIGHBOUR_SHARE = 0.05
# share of the time that a hypervisor or a quota may take
_TAKEN_SHARE = 0.01
# without a count of processor time: processes per core that wanted one during the minute before
_LOAD_PER_CORE = 0.25
# a clock this much slower than before is a fall; the kernel's own reading wavers by a percent or two
_FREQUENCY_FALL = 0.05
# degrees below the trip point
_NEAR_TRIP_C = 5.0
# counts of processor time come in ticks of 10 ms: a shorter span says nothing
_LEAST_SPAN_S = 0.2


@dataclass(frozen=True)
class Conditions:
    """What was so at one moment; every field but the first two is a `Reading`.

    Attributes:
        time: UTC, ISO 8601.
        monotonic_s: of a clock that only goes forward, seconds: differences count.
        cpu: name of the processor.
        cores: numbers of the cores this process may run on.
        features: instruction-set features that matter to inference.
        frequency_mhz: core → clock now.
        frequency_limit_mhz: core → highest clock allowed now.
        governor: of the clock; ``performance`` makes measurements repeatable.
        temperature_c: zone → temperature.
        trip_c: zone → temperature at which the machine is slowed.
        throttling: ``now``, ``occurred``, ``counters`` (see `sensors.throttling`).
        power_mode: nvpmodel's mode, or the platform's profile.
        energy_j: counters, domain → ``joules`` and ``range_joules``.
        power_w: rail → power now, and ``total``.
        load_average: processes that wanted a core, mean of the last minute.
        cpu_time_s: processor time since boot, all cores: ``total``, ``busy``, ``steal`` (taken by the hypervisor),
            and ``own``, this process and its children that have ended.
        memory_available_bytes: what can be had without swapping.
        gpu: NVIDIA GPU → ``clock_mhz`` and what else it tells (see `nvml.gpu_readings`).
    """

    time: str
    monotonic_s: float
    cpu: Reading
    cores: Reading
    features: Reading
    frequency_mhz: Reading
    frequency_limit_mhz: Reading
    governor: Reading
    temperature_c: Reading
    trip_c: Reading
    throttling: Reading
    power_mode: Reading
    energy_j: Reading
    power_w: Reading
    load_average: Reading
    cpu_time_s: Reading
    memory_available_bytes: Reading
    gpu: Reading

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        found: dict[str, Any] = {"time": self.time, "monotonic_s": self.monotonic_s}
        return found | {name: getattr(self, name).to_dict() for name in _READINGS}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Conditions:
        """Build from plain values; a reading that is missing says so, keys of a newer version are passed over."""
        missing = Reading(why="the record has none")
        readings = {name: Reading.from_dict(values[name]) if name in values else missing for name in _READINGS}
        return cls(time=str(values.get("time", "")), monotonic_s=float(values.get("monotonic_s", 0.0)), **readings)


_READINGS = tuple(field.name for field in fields(Conditions) if field.name not in {"time", "monotonic_s"})


def read_conditions(root: Path = Path("/"), *, quick: bool = False) -> Conditions:
    """Read every sensor there is; never fails, and takes milliseconds.

    To be called in the process that does the work, so that its own processor time can be told from others'.

    Args:
        root: where ``proc``, ``sys``, ``etc``, ``dev`` and ``usr`` lie.
        quick: ask no program (``nvpmodel``, ``vcgencmd``), for readings in the middle of a measurement.
    """
    cpu = cpu_info(root)
    features = Reading(why=cpu.why) if cpu.features is None else Reading(list(cpu.features))
    return Conditions(
        time=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        monotonic_s=time.monotonic(),
        cpu=Reading(cpu.name) if cpu.name else Reading(why="the kernel does not name it"),
        cores=guarded(lambda: sensors.cores_used(root)),
        features=features,
        frequency_mhz=guarded(lambda: sensors.frequency(root)),
        frequency_limit_mhz=guarded(lambda: sensors.frequency_limit(root)),
        governor=guarded(lambda: sensors.governor(root)),
        temperature_c=guarded(lambda: sensors.temperature(root)),
        trip_c=guarded(lambda: sensors.trip_points(root)),
        throttling=guarded(lambda: sensors.throttling(root, commands=not quick)),
        power_mode=guarded(lambda: sensors.power_mode(root, commands=not quick)),
        energy_j=guarded(lambda: energy_counters(root)),
        power_w=guarded(lambda: power(root, commands=not quick)),
        load_average=guarded(lambda: _load_average(root)),
        cpu_time_s=guarded(lambda: _cpu_time(root)),
        memory_available_bytes=guarded(lambda: memory_available(root)),
        gpu=guarded(lambda: gpu_readings(root)),
    )


def flags(before: Conditions, during: Conditions | Iterable[Conditions] | None, after: Conditions) -> list[str]:
    """What makes a measurement between these readings doubtful, one sentence each, ``"topic: what was seen"``.

    Topics: ``throttled``, ``busy neighbour``, ``frequency fell``, ``governor``, ``temperature``. A reading that was
    not to be had raises no flag: it says so itself.
    """
    middle = [during] if isinstance(during, Conditions) else list(during or ())
    return [
        *_throttled(before, middle, after),
        *_neighbours(before, after),
        *_frequency_fell(before, middle, after),
        *_governor(before),
        *_near_trip([*middle, after]),
    ]


def _throttled(before: Conditions, middle: Sequence[Conditions], after: Conditions) -> list[str]:
    found: dict[str, None] = {}
    readings = [reading for reading in (before, *middle, after) if reading.throttling.available]
    for reading in readings:
        found.update(dict.fromkeys(reading.throttling.value["now"]))
    for reading in (*middle, after):
        for index, gpu in (reading.gpu.value or {}).items():
            found.update(dict.fromkeys(f"GPU {index} {words}" for words in gpu.get("throttling", ())))
    if before.throttling.available and after.throttling.available:
        first, last = before.throttling.value, after.throttling.value
        found.update({f"{name} (in between)": None for name in last["occurred"] if name not in first["occurred"]})
        for name, count in last["counters"].items():
            grown = count - first["counters"].get(name, count)
            if name.endswith(", s"):
                span = after.monotonic_s - before.monotonic_s
                if span > 0 and grown / span > _TAKEN_SHARE:
                    found[f"{name.removesuffix(', s')} stopped it for {grown:.2f} of {span:.2f} s"] = None
            elif grown > 0:
                found[f"{name} rose by {grown:g}"] = None
    return [f"throttled: {', '.join(found)}"] if found else []


def _neighbours(before: Conditions, after: Conditions) -> list[str]:
    if not (before.cpu_time_s.available and after.cpu_time_s.available):
        return _by_load(before)
    total, others, steal = _cpu_seconds(before.cpu_time_s.value, after.cpu_time_s.value)
    if total < _LEAST_SPAN_S:
        return []
    found = []
    if others / total > _NEIGHBOUR_SHARE:
        found.append(f"busy neighbour: other processes used {others / total:.0%} of the machine's processor time")
    if steal / total > _TAKEN_SHARE:
        found.append(f"busy neighbour: the hypervisor took {steal / total:.0%} of the processor time (steal)")
    return found


def _cpu_seconds(first: Mapping[str, float], last: Mapping[str, float]) -> tuple[float, float, float]:
    """Processor time in all, of others, and stolen between two readings, seconds."""
    grown = {key: last[key] - first[key] for key in ("total", "busy", "steal", "own")}
    return grown["total"], max(0.0, grown["busy"] - grown["own"]), max(0.0, grown["steal"])


def _by_load(before: Conditions) -> list[str]:
    """The load before the measurement: during it, the measurement itself is the load."""
    if not before.load_average.available:
        return []
    cores = len(before.cores.value) if before.cores.available else os.cpu_count() or 1
    load = float(before.load_average.value)
    if load <= _LOAD_PER_CORE * cores:
        return []
    return [f"busy neighbour: the load average was {load:g} on {cores} cores before it began"]


def _frequency_fell(before: Conditions, middle: Sequence[Conditions], after: Conditions) -> list[str]:
    """Clock of the fastest usable core, among readings under load; idle ones are only alike with a fixed clock."""
    readings = list(middle)
    if before.governor.value == "performance":
        readings = [before, *middle, after]
    clocks = [clock for reading in readings if (clock := _fastest(reading)) is not None]
    if len(clocks) < 2:
        return []
    highest = max(clocks)
    lowest = min(clocks[clocks.index(highest) :])
    if lowest >= (1 - _FREQUENCY_FALL) * highest:
        return []
    return [f"frequency fell: from {highest:g} to {lowest:g} MHz"]


def _fastest(reading: Conditions) -> float | None:
    if not reading.frequency_mhz.available:
        return None
    clocks = reading.frequency_mhz.value
    allowed = {str(core) for core in reading.cores.value} if reading.cores.available else set(clocks)
    usable = [clock for core, clock in clocks.items() if core in allowed]
    return float(max(usable or clocks.values()))


def _governor(before: Conditions) -> list[str]:
    if not before.governor.available or before.governor.value == "performance":
        return []
    value = before.governor.value
    name = value if isinstance(value, str) else ", ".join(sorted(set(value.values())))
    return [
        f"governor: {name}, not performance; the clock follows the load (sudo cpupower frequency-set -g performance)"
    ]


def _near_trip(readings: Sequence[Conditions]) -> list[str]:
    worst: dict[str, tuple[float, float]] = {}
    for reading in readings:
        if not (reading.temperature_c.available and reading.trip_c.available):
            continue
        for zone, limit in reading.trip_c.value.items():
            degrees = reading.temperature_c.value.get(zone)
            if degrees is not None and degrees >= limit - _NEAR_TRIP_C:
                worst[zone] = (max(degrees, worst.get(zone, (degrees, limit))[0]), limit)
    return [
        f"temperature: {zone} reached {degrees:g} °C; it is slowed from {limit:g} °C on"
        for zone, (degrees, limit) in worst.items()
    ]


def _load_average(root: Path) -> Reading:
    words = (text(root / "proc/loadavg") or "").split()
    if words:
        return Reading(float(words[0]))
    if root == Path("/") and hasattr(os, "getloadavg"):
        return Reading(round(os.getloadavg()[0], 2))
    return Reading(why="the system keeps no load average")


def _cpu_time(root: Path) -> Reading:
    first = (text(root / "proc/stat") or "").splitlines()[:1]
    columns = first[0].split() if first else []
    own = (text(root / "proc/self/stat") or "").rpartition(")")[2].split()
    if not columns or columns[0] != "cpu" or len(columns) < 5 or len(own) < 15:
        return Reading(unit="s", why="/proc/stat and /proc/self/stat do not tell")
    tick = 1 / os.sysconf("SC_CLK_TCK")
    # user nice system idle iowait irq softirq steal; guest time is already part of user (man 5 proc)
    ticks = [int(column) for column in columns[1:9]]
    ticks += [0] * (8 - len(ticks))
    idle, steal = ticks[3] + ticks[4], ticks[7]
    return Reading(
        {
            "total": sum(ticks) * tick,
            "busy": (sum(ticks) - idle - steal) * tick,
            "steal": steal * tick,
            # utime, stime, cutime, cstime are fields 14 to 17, counted from 1; field 3 is the first after the name
            "own": sum(int(value) for value in own[11:15]) * tick,
        },
        "s",
    )
