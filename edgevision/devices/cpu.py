"""The processor: its name, how many cores this process may use, and the instructions that matter to inference."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# /proc/cpuinfo's x86 flag → the name used here; only what inference engines have kernels for
X86_FEATURES = {
    "sse4_1": "sse4_1",
    "avx": "avx",
    "f16c": "f16c",
    "fma": "fma",
    "avx2": "avx2",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512_vnni": "avx512_vnni",
    "avx_vnni": "avx_vnni",
    "avx_vnni_int8": "avx_vnni_int8",
    "avx512_bf16": "avx512_bf16",
    "avx512_fp16": "avx512_fp16",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
}

# /proc/cpuinfo's Arm feature → Arm's own name of it
ARM_FEATURES = {
    "neon": "neon",
    "asimd": "neon",
    "asimddp": "dotprod",
    "asimdhp": "fp16",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
    "sme": "sme",
}

# sysctl key of macOS on Arm → the same names
APPLE_FEATURES = {
    "hw.optional.AdvSIMD": "neon",
    "hw.optional.arm.FEAT_DotProd": "dotprod",
    "hw.optional.arm.FEAT_FP16": "fp16",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.arm.FEAT_SME": "sme",
}

# (implementer, part) of MIDR_EL1 → core name, Arm's "Main ID Register" tables and vendors' Linux headers
ARM_CORES = {
    (0x41, 0xD03): "Cortex-A53",
    (0x41, 0xD04): "Cortex-A35",
    (0x41, 0xD05): "Cortex-A55",
    (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD09): "Cortex-A73",
    (0x41, 0xD0A): "Cortex-A75",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD0D): "Cortex-A77",
    (0x41, 0xD40): "Neoverse-V1",
    (0x41, 0xD41): "Cortex-A78",
    (0x41, 0xD42): "Cortex-A78AE",
    (0x41, 0xD44): "Cortex-X1",
    (0x41, 0xD46): "Cortex-A510",
    (0x41, 0xD47): "Cortex-A710",
    (0x41, 0xD48): "Cortex-X2",
    (0x41, 0xD49): "Neoverse-N2",
    (0x41, 0xD4D): "Cortex-A715",
    (0x41, 0xD4E): "Cortex-X3",
    (0x41, 0xD4F): "Neoverse-V2",
    (0x41, 0xD83): "Neoverse-V3AE",
    (0x4E, 0x003): "Denver 2",
    (0x4E, 0x004): "Carmel",
}


@dataclass(frozen=True)
class CpuInfo:
    """The processor as inference sees it.

    Attributes:
        name: e.g. ``"Intel(R) Xeon(R) Processor"`` or ``"4× Cortex-A76 + 4× Cortex-A55"``.
        architecture: ``x86_64``, ``aarch64``, ``armv7l`` …
        logical_cores: cores the operating system sees.
        usable_cores: cores this process may use: CPU affinity and the cgroup's quota respected.
        features: instruction-set features, by the names of `X86_FEATURES` and `ARM_FEATURES`, present on every
            core; None where they cannot be read.
        why: why ``features`` is None; empty otherwise.
    """

    name: str
    architecture: str
    logical_cores: int
    usable_cores: int
    features: tuple[str, ...] | None
    why: str = ""

    @property
    def is_x86(self) -> bool:
        """x86, 32 or 64 bits."""
        return self.architecture in {"x86_64", "i386", "i686"}

    @property
    def is_arm(self) -> bool:
        """Arm, 32 or 64 bits."""
        return self.architecture.startswith(("aarch64", "arm"))

    def has(self, *names: str) -> bool:
        """Tell whether any of these features is present."""
        return self.features is not None and any(name in self.features for name in names)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        return {
            "name": self.name,
            "architecture": self.architecture,
            "logical_cores": self.logical_cores,
            "usable_cores": self.usable_cores,
            "features": None if self.features is None else list(self.features),
            "why": self.why,
        }


def cpu_info(root: Path = Path("/")) -> CpuInfo:
    """Look at the processor of this machine; never fails.

    Args:
        root: where ``proc`` and ``sys`` lie (another machine's tree can be looked at, too).
    """
    architecture = _normal(platform.machine())
    logical = os.cpu_count() or 1
    usable = usable_cores(root)
    try:
        text = (root / "proc/cpuinfo").read_text(errors="replace")
    except OSError as error:
        name, features, why = _without_cpuinfo(f"/proc/cpuinfo cannot be read ({error.strerror})")
    else:
        name, features = parse_cpuinfo(text)
        why = "" if features is not None else "/proc/cpuinfo lists no features"
    return CpuInfo(name or platform.processor() or architecture, architecture, logical, usable, features, why)


def parse_cpuinfo(text: str) -> tuple[str, tuple[str, ...] | None]:
    """Name and features of a Linux ``/proc/cpuinfo``, of x86 or Arm.

    Features are those present on all cores: a thread may be moved to any of them.
    """
    names: Counter[str] = Counter()
    flags: set[str] | None = None
    implementer = 0x41
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "model name":
            names[value] += 1
        elif key == "CPU implementer":
            implementer = _integer(value)
        elif key == "CPU part":
            part = _integer(value)
            names[ARM_CORES.get((implementer, part), f"Arm core {implementer:#04x}/{part:#05x}")] += 1
        elif key in {"flags", "Features"}:
            flags = set(value.split()) if flags is None else flags & set(value.split())
    features = None
    if flags is not None:
        known = {**X86_FEATURES, **ARM_FEATURES}
        features = tuple(dict.fromkeys(name for flag, name in known.items() if flag in flags))
    return _joined(names), features


def usable_cores(root: Path = Path("/")) -> int:
    """Cores this process may keep busy: CPU affinity, cut to the cgroup's CPU quota rounded up; at least 1."""
    # macOS and Windows have no affinity mask to ask for
    every = range(os.cpu_count() or 1)
    cores = len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else every)
    quota = cgroup_quota(root)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def cgroup_quota(root: Path = Path("/")) -> float | None:
    """CPU quota of this process's cgroup (v2 or v1) in cores; None where there is no limit.

    A group is limited by its parents too, so the least of the chain counts.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    limits: list[float] = []
    for line in lines:
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            mount, read = root / "sys/fs/cgroup", _quota_v2
        elif "cpu" in controllers.split(","):
            mount, read = root / "sys/fs/cgroup/cpu", _quota_v1
        else:
            continue
        folder = mount / group.lstrip("/")
        while True:
            if (limit := read(folder)) is not None:
                limits.append(limit)
            if folder == mount or mount not in folder.parents:
                break
            folder = folder.parent
    return min(limits, default=None)


def _quota_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        return None if quota < 0 else quota / period
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _without_cpuinfo(why: str) -> tuple[str, tuple[str, ...] | None, str]:
    if sys.platform == "darwin":
        return _macos()
    return "", None, why


def _macos() -> tuple[str, tuple[str, ...] | None, str]:
    name = _sysctl("machdep.cpu.brand_string")
    if _normal(platform.machine()) == "aarch64":
        features = tuple(feature for key, feature in APPLE_FEATURES.items() if _sysctl(key) == "1")
        return name, features, ""
    # Intel Macs list flags in the same words as Linux, in capitals and with dots
    words = f"{_sysctl('machdep.cpu.features')} {_sysctl('machdep.cpu.leaf7_features')}".lower().replace(".", "_")
    aliases = {"avx1_0": "avx", "avx512vnni": "avx512_vnni"}
    flags = {aliases.get(word, word) for word in words.split()}
    return name, tuple(feature for flag, feature in X86_FEATURES.items() if flag in flags), ""


def _sysctl(key: str) -> str:
    try:
        done = subprocess.run(["/usr/sbin/sysctl", "-n", key], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def _joined(names: Counter[str]) -> str:
    if len(names) <= 1:
        # "2× Xeon" says nothing that the number of cores does not say; on Arm the part is the only name there is
        return next(iter(names), "")
    return " + ".join(f"{count}× {name}" for name, count in names.most_common())


def _normal(machine: str) -> str:
    machine = machine.lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine) or "unknown"


def _integer(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        return 0
