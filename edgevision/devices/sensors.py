"""Sensors of the processor and the board under ``/proc`` and ``/sys``, one function each; energy is in `energy`.

Each function returns a `Reading`: a value with its unit, or why there is none. All of them take the ``root`` under
which ``proc``, ``sys``, ``etc`` and ``usr`` lie, so that another machine's tree can be read as well.
"""

from __future__ import annotations

import array
import os
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# bit of Raspberry Pi's get_throttled → what it says of this moment; 16 higher: that it has occurred
# (Raspberry Pi documentation, "vcgencmd", get_throttled)
THROTTLED_BITS = {
    0: "under-voltage",
    1: "frequency capped",
    2: "throttled",
    3: "soft temperature limit",
}
HAS_OCCURRED = 16

# property tag of the VideoCore mailbox ("Get throttled") and its ioctl, _IOWR(100, 0, char *) on 64 bits
_GET_THROTTLED_TAG = 0x00030046
_MAILBOX_IOCTL = 0xC0086400

_COMMAND_TIMEOUT_S = 2.0

# kinds of trip points in the order in which they are reached; "active" only turns a fan on
_TRIPS = ("passive", "hot", "critical")


@dataclass(frozen=True)
class Reading:
    """One reading.

    Attributes:
        value: what was read, plain values; None where it could not be had.
        unit: of the value or of each number in it; empty for words and counts.
        why: why there is no value; empty otherwise.
    """

    value: Any = None
    unit: str = ""
    why: str = ""

    @property
    def available(self) -> bool:
        """Whether there is a value."""
        return self.value is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain values: ``value`` and ``unit``, or None, ``unit`` and ``why`` ("not available: …")."""
        if self.available:
            return {"value": self.value, "unit": self.unit}
        return {"value": None, "unit": self.unit, "why": f"not available: {self.why}"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Reading:
        """Build from plain values, also from the readings of `edgevision.devices.environment`."""
        why = str(values.get("why", "")).removeprefix("not available: ")
        return cls(values.get("value"), str(values.get("unit", "")), why)


def guarded(read: Callable[[], Reading]) -> Reading:
    """What ``read`` returns; whatever it raises becomes the reason why there is no value.

    A sensor must never cost a measurement, and drivers fail in ways of their own (EIO, ENODATA, odd text).
    """
    try:
        return read()
    except Exception as error:
        return Reading(why=f"reading it failed: {type(error).__name__}: {error}")


def text(path: Path) -> str | None:
    """Content of a small file without white space around; None where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except (OSError, ValueError):
        return None


def number(path: Path) -> int | None:
    """The whole number in a file; None where there is none."""
    try:
        return int(text(path) or "")
    except ValueError:
        return None


def cores_used(root: Path = Path("/")) -> Reading:
    """Numbers of the cores this process may run on: from ``Cpus_allowed_list``, else from the system call."""
    for line in (text(root / "proc/self/status") or "").splitlines():
        key, _, value = line.partition(":")
        if key == "Cpus_allowed_list":
            return Reading(core_list(value))
    if root == Path("/") and hasattr(os, "sched_getaffinity"):
        return Reading(sorted(os.sched_getaffinity(0)))
    return Reading(why="the system shows no affinity")


def core_list(words: str) -> list[int]:
    """``"0-2,5"`` → ``[0, 1, 2, 5]``, as the kernel writes lists of cores.

    Raises:
        ValueError: no such list.
    """
    cores: list[int] = []
    for part in words.strip().split(","):
        if part.strip():
            first, _, last = part.partition("-")
            cores += range(int(first), int(last or first) + 1)
    return cores


def frequency(root: Path = Path("/")) -> Reading:
    """Clock of each core now, core → MHz: from cpufreq, else from ``/proc/cpuinfo``."""
    found = _per_core(root, "scaling_cur_freq")
    if found:
        return Reading(found, "MHz")
    core = None
    for line in (text(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "processor":
            core = value
        elif key == "cpu MHz" and core is not None and re.fullmatch(r"\d+(\.\d+)?", value):
            found[core] = round(float(value))
    return Reading(found, "MHz") if found else Reading(unit="MHz", why="the kernel shows no clock")


def frequency_limit(root: Path = Path("/")) -> Reading:
    """Highest clock that is allowed now, core → MHz; a governor, a user or a thermal limit may lower it."""
    found = _per_core(root, "scaling_max_freq")
    return Reading(found, "MHz") if found else Reading(unit="MHz", why=_NO_CPUFREQ)


def governor(root: Path = Path("/")) -> Reading:
    """Frequency governor: its name, or core → name where they differ."""
    found = {}
    for folder in _cpufreq(root):
        if name := text(folder / "scaling_governor"):
            found[folder.parent.name.removeprefix("cpu")] = name
    names = set(found.values())
    if not names:
        return Reading(why=_NO_CPUFREQ)
    return Reading(names.pop() if len(names) == 1 else found)


_NO_CPUFREQ = "no cpufreq (usual in virtual machines and containers)"


def memory_available(root: Path = Path("/")) -> Reading:
    """Bytes that can be had without swapping, in this process's own cgroup."""
    for line in (text(root / "proc/meminfo") or "").splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
            limit, used = number(root / "sys/fs/cgroup/memory.max"), number(root / "sys/fs/cgroup/memory.current")
            if limit is not None and used is not None:
                available = min(available, max(0, limit - used))
            return Reading(available, "bytes")
    return Reading(unit="bytes", why="/proc/meminfo does not tell")


def temperature(root: Path = Path("/")) -> Reading:
    """Temperature of every thermal zone and processor sensor, name → °C."""
    found = {name: celsius for name, (celsius, _) in _zones(root).items()}
    return Reading(found, "°C") if found else Reading(unit="°C", why=_NO_ZONES)


def trip_points(root: Path = Path("/")) -> Reading:
    """Temperature at which each zone begins to slow the machine (or, failing that, to stop it), name → °C."""
    zones = _zones(root)
    found = {name: trip for name, (_, trip) in zones.items() if trip is not None}
    if found:
        return Reading(found, "°C")
    return Reading(unit="°C", why="no zone names a limit" if zones else _NO_ZONES)


_NO_ZONES = "the kernel shows no thermal zone (usual in virtual machines and containers)"


def throttling(root: Path = Path("/"), *, commands: bool = True) -> Reading:
    """What slows this machine now, and counters of what did.

    Returns:
        ``now``: words, empty where nothing does; ``occurred``: words of Raspberry Pi's sticky bits; ``counters``:
        name → count or seconds, of events that slowed it so far (x86's thermal counters, Jetson's over-current
        events, seconds for which the cgroup's quota stopped this process). No value where the machine has nothing
        that would tell.
    """
    now: list[str] = []
    occurred: list[str] = []
    told = False
    if (bits := _pi_bits(root, commands)) is not None:
        told = True
        decoded = decode_throttled(bits)
        now += decoded["now"]
        occurred += decoded["occurred"]
    for name, state in _cooling(root).items():
        told = True
        if state > 0:
            now.append(f"{name} at step {state}")
    counters = _throttle_counters(root)
    if not told and not counters:
        return Reading(why="nothing here tells of throttling (no Raspberry Pi firmware, cooling device or counter)")
    return Reading({"now": now, "occurred": occurred, "counters": counters})


def decode_throttled(bits: int) -> dict[str, list[str]]:
    """Raspberry Pi's ``get_throttled`` in words: what is so ``now`` and what has ``occurred``."""
    return {
        "now": [name for bit, name in THROTTLED_BITS.items() if bits >> bit & 1],
        "occurred": [name for bit, name in THROTTLED_BITS.items() if bits >> (bit + HAS_OCCURRED) & 1],
    }


def parse_throttled(words: str) -> int | None:
    """``"throttled=0x50005"`` or ``"50005"`` (as sysfs writes it, hexadecimal) → the bits; None for anything else."""
    match = re.fullmatch(r"(?:throttled=)?(?:0x)?([0-9a-fA-F]{1,8})", words.strip())
    return int(match[1], 16) if match else None


def power_mode(root: Path = Path("/"), *, commands: bool = True) -> Reading:
    """Power mode: Jetson's ``nvpmodel``, else the platform profile of a laptop or a server's firmware."""
    if (mode := _nvpmodel_files(root)) is not None:
        return Reading(mode)
    if commands and (said := command(root, ("usr/sbin/nvpmodel", "usr/bin/nvpmodel"), "-q")) is not None:
        mode = parse_nvpmodel(said)
        return Reading(mode) if mode else Reading(why=f"nvpmodel -q said {said.strip()[:80]!r}")
    if profile := text(root / "sys/firmware/acpi/platform_profile"):
        return Reading(profile)
    return Reading(why="no nvpmodel (Jetson) and no platform profile")


def parse_nvpmodel(said: str) -> str | None:
    """Name and number of the mode from ``nvpmodel -q``, e.g. ``"MODE_15W (2)"``; None where it names none."""
    match = re.search(r"NV Power Mode\s*:[ \t]*(\S[^\r\n]*)", said)
    if match is None:
        return None
    numbers = re.findall(r"^\s*(\d+)\s*$", said[match.end() :], re.MULTILINE)
    return f"{match[1].strip()} ({numbers[0]})" if numbers else match[1].strip()


def command(root: Path, places: tuple[str, ...], *arguments: str) -> str | None:
    """Standard output of the first of these programs under ``root``; None where there is none or it fails."""
    for place in places:
        program = root / place
        if not program.is_file():
            continue
        try:
            done = subprocess.run(
                [str(program), *arguments],
                capture_output=True,
                text=True,
                errors="replace",
                stdin=subprocess.DEVNULL,
                timeout=_COMMAND_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.SubprocessError):
            continue
        if done.returncode == 0:
            return done.stdout
    return None


def _cpufreq(root: Path) -> list[Path]:
    folders = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq")
    return sorted(folders, key=lambda folder: int(re.sub(r"\D", "", folder.parent.name) or 0))


def _per_core(root: Path, name: str) -> dict[str, int]:
    found = {}
    for folder in _cpufreq(root):
        if (kilohertz := number(folder / name)) is not None:
            found[folder.parent.name.removeprefix("cpu")] = round(kilohertz / 1000)
    return found


def _zones(root: Path) -> dict[str, tuple[float, float | None]]:
    """Name → (°C, trip point or None) of thermal zones and of processor sensors."""
    found: dict[str, tuple[float, float | None]] = {}

    def add(name: str, millidegrees: int | None, trip: int | None) -> None:
        # a sleeping sensor reads 0 or -256000 (Jetson's PMIC die); those are no temperatures
        if millidegrees is None or millidegrees <= 0:
            return
        while name in found:
            name += "'"
        found[name] = (round(millidegrees / 1000, 1), round(trip / 1000, 1) if trip is not None and trip > 0 else None)

    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        add(text(zone / "type") or zone.name, number(zone / "temp"), _trip(zone))
    for sensor in sorted((root / "sys/class/hwmon").glob("hwmon*/temp*_input")):
        if text(sensor.parent / "name") in {"coretemp", "k10temp", "zenpower"}:
            stem = sensor.name.removesuffix("_input")
            limits = (number(sensor.with_name(f"{stem}_{end}")) for end in ("max", "crit"))
            label = text(sensor.with_name(f"{stem}_label")) or stem
            add(label, number(sensor), next((limit for limit in limits if limit), None))
    return found


def _trip(zone: Path) -> int | None:
    trips: dict[str, list[int]] = {}
    for path in zone.glob("trip_point_*_type"):
        degrees = number(path.with_name(path.name.replace("_type", "_temp")))
        if degrees is not None and degrees > 0:
            trips.setdefault(text(path) or "", []).append(degrees)
    return next((min(trips[kind]) for kind in _TRIPS if kind in trips), None)


def _cooling(root: Path) -> dict[str, int]:
    """Cooling device that slows a processor → its step (0: not in use). Fans slow nothing and are left out."""
    found: dict[str, int] = {}
    for device in sorted((root / "sys/class/thermal").glob("cooling_device*")):
        kind = text(device / "type") or ""
        if re.search(r"cpufreq|devfreq|gpu|processor|throttle-alert|powerclamp|cpuidle", kind, re.IGNORECASE):
            state = number(device / "cur_state")
            if state is not None:
                found[kind if kind not in found else f"{kind} {device.name}"] = state
    return found


def _throttle_counters(root: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in ("core_throttle_count", "package_throttle_count"):
        paths = (root / "sys/devices/system/cpu").glob(f"cpu[0-9]*/thermal_throttle/{name}")
        counts = [count for path in paths if (count := number(path)) is not None]
        if counts:
            # every core shows its package's counter: the greatest is it; of cores, all count
            found[name] = max(counts) if name.startswith("package") else sum(counts)
    for path in sorted((root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt")):
        if (count := number(path)) is not None:
            found[f"over-current {path.name.removesuffix('_event_cnt')}"] = count
    if (seconds := _quota_seconds(root)) is not None:
        found["cgroup quota, s"] = seconds
    return found


def _quota_seconds(root: Path) -> float | None:
    """Seconds for which the quota of this process's cgroup (v2) has stopped it; None without a quota."""
    for line in (text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        if controllers:
            continue
        folder = root / "sys/fs/cgroup" / group.lstrip("/")
        if (text(folder / "cpu.max") or "max").startswith("max"):
            return None
        for entry in (text(folder / "cpu.stat") or "").splitlines():
            key, _, value = entry.partition(" ")
            if key == "throttled_usec" and value.strip().isdigit():
                return int(value) / 1e6
    return None


def _pi_bits(root: Path, commands: bool) -> int | None:
    for path in sorted((root / "sys/devices/platform").glob("soc*/*firmware*/get_throttled")):
        if (bits := parse_throttled(text(path) or "")) is not None:
            return bits
    if (bits := _mailbox(root / "dev/vcio")) is not None:
        return bits
    if commands:
        said = command(root, ("usr/bin/vcgencmd", "opt/vc/bin/vcgencmd"), "get_throttled")
        return None if said is None else parse_throttled(said)
    return None


def _mailbox(device: Path) -> int | None:
    """``get_throttled`` asked of the firmware itself; the request value 0 leaves the sticky bits as they are."""
    if not device.is_char_device():
        return None
    # size of the message, request, tag, size of its value, request, value, end (firmware wiki, "Mailbox property
    # interface")
    message = array.array("I", [28, 0, _GET_THROTTLED_TAG, 4, 0, 0, 0])
    try:
        import fcntl

        with device.open("rb", buffering=0) as mailbox:
            fcntl.ioctl(mailbox, _MAILBOX_IOCTL, message, True)
    except (ImportError, OSError):
        return None
    answered = message[1] == 0x80000000
    return int(message[5]) if answered else None


def _nvpmodel_files(root: Path) -> str | None:
    """The mode from nvpmodel's own files: quicker than the program, and readable by everybody."""
    status = re.search(r"pmode:\s*(\d+)", text(root / "var/lib/nvpmodel/status") or "")
    if status is None:
        return None
    identity = int(status[1])
    for match in re.finditer(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", text(root / "etc/nvpmodel.conf") or ""):
        if int(match[1]) == identity:
            return f"{match[2]} ({identity})"
    return f"mode {identity}"
