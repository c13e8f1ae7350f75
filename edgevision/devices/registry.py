"""The device registry: boards, cores, and which of them this machine is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevision.devices.boards import BOARDS, Cluster, Device
from edgevision.devices.cores import CORES, Core
from edgevision.devices.cpu import CpuInfo, cpu_info
from edgevision.devices.environment import clock, max_clock
from edgevision.devices.figures import Figure
from edgevision.devices.sensors import text
from edgevision.errors import UsageError
from edgevision.registry import unknown_name

# a precision that a core or GPU has no rate for runs at that of the next wider one
_WIDER = {"int8": "fp16", "fp16": "fp32", "fp32": None}

# x86 entries of `CORES`, the most able first, and the features that tell them
_X86 = (
    ("x86-amx", ("amx_int8",)),
    ("x86-avx512-vnni", ("avx512_vnni",)),
    ("x86-avx-vnni", ("avx_vnni",)),
    ("x86-avx512", ("avx512bw",)),
    ("x86-avx2", ("avx2",)),
)


@dataclass(frozen=True)
class Match:
    """Which entry of the registry a machine is.

    Attributes:
        name: key of `BOARDS` or, where no board is recognized, of `CORES`; None where nothing is.
        device: the board, or one made of the cores and clocks that were read; None likewise.
        how: what told it, or why nothing did.
    """

    name: str | None
    device: Device | None
    how: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values: ``name``, ``title`` and ``how``."""
        return {"name": self.name, "title": None if self.device is None else self.device.title, "how": self.how}


def names() -> list[str]:
    """Boards, then cores."""
    return [*BOARDS, *CORES]


def entry(name: str) -> Device | Core:
    """A board or core by its name.

    Raises:
        UsageError: no such name; the message lists the near ones.
    """
    if name in BOARDS:
        return BOARDS[name]
    if name in CORES:
        return CORES[name]
    raise UsageError(unknown_name("device", name, names()))


def board(name: str, root: Path = Path("/")) -> Device:
    """A board by its name, or ``this`` for the machine at hand.

    Raises:
        UsageError: no such board, a core, or a machine that is not recognized.
    """
    if name == "this":
        found = recognize(root)
        if found.device is None:
            raise UsageError(f"this machine is not in the device registry: {found.how}")
        return found.device
    if name in CORES:
        raise UsageError(
            f"{name} is a core; an estimate needs a board, such as {', '.join(_boards_with(name)) or 'this'}"
        )
    found_entry = entry(name)
    assert isinstance(found_entry, Device)
    return found_entry


def describe(name: str) -> dict[str, Any]:
    """A board or core in plain values, every figure with its source.

    Raises:
        UsageError: no such name.
    """
    found = entry(name)
    if isinstance(found, Core):
        return {"name": name, "kind": "core", **found.to_dict()}
    return {"name": name, "kind": "board", **device_dict(found)}


def device_dict(device: Device) -> dict[str, Any]:
    """A board in plain values, with the peak rates that follow from its cores."""
    single = ("memory", "bandwidth", "jetpack", "tensorrt", "power")
    figures = {key: figure.to_dict() if (figure := getattr(device, key)) is not None else None for key in single}
    return {
        "title": device.title,
        "clusters": [cluster.to_dict() for cluster in device.clusters],
        "isa": list(isa(device)),
        **figures,
        "compute_capability": None if device.compute_capability is None else list(device.compute_capability),
        "peaks": {
            unit: {precision: figure.to_dict() for precision, figure in rates.items()}
            for unit, rates in all_peaks(device).items()
        },
        "note": device.note,
    }


def isa(device: Device) -> tuple[str, ...]:
    """Features that every core of a board has: a thread may be moved to any of them."""
    kinds = [CORES[cluster.core].isa for cluster in device.clusters]
    return tuple(name for name in kinds[0] if all(name in kind for kind in kinds)) if kinds else ()


def all_peaks(device: Device) -> dict[str, dict[str, Figure]]:
    """Unit (``cpu``, ``gpu``, ``dla``, ``npu``) → precision → peak rate with its source."""
    cores: dict[str, Figure] = {}
    for precision in ("fp32", "fp16", "int8"):
        own = all(precision in CORES[cluster.core].rates for cluster in device.clusters)
        figure = cpu_peak(device, precision) if own else None
        if figure is not None:
            cores[precision] = figure
    return ({"cpu": cores} if cores else {}) | device.accelerators


def cpu_peak(device: Device, precision: str, threads: int | None = None) -> Figure | None:
    """Peak rate of the processor, GFLOPS or GOPS; None where a core's rate is not known at all.

    Args:
        device: a board.
        precision: ``fp32``, ``fp16`` or ``int8``; one without a rate of its own runs as the next wider one.
        threads: cores that work, the fastest first; None for all.
    """
    left = threads if threads is not None else sum(cluster.count for cluster in device.clusters)
    total, sources, verified = 0.0, [], True
    for cluster in device.clusters:
        count = min(left, cluster.count)
        if count <= 0:
            break
        rate = with_fallback(CORES[cluster.core].rates, precision)
        if rate is None:
            return None
        total += count * cluster.mhz.number * rate.number / 1000
        verified = verified and rate.verified and cluster.mhz.verified
        sources.append(f"{count} × {cluster.mhz.value:g} MHz ({cluster.mhz.source}) × {rate.value:g} ({rate.source})")
        left -= count
    unit = "GOPS" if precision == "int8" else "GFLOPS"
    return Figure(round(total, 1), unit, "; ".join(sources), verified) if sources else None


def gpu_peak(device: Device, precision: str) -> Figure | None:
    """Peak rate of the GPU, TFLOPS or TOPS, dense; None where there is none, or none for this precision or wider."""
    return with_fallback(device.accelerators.get("gpu", {}), precision)


def with_fallback(rates: Mapping[str, Figure], precision: str) -> Figure | None:
    """The rate of a precision, or of the next wider one that has a rate."""
    wanted: str | None = precision
    while wanted is not None:
        if wanted in rates:
            return rates[wanted]
        wanted = _WIDER[wanted]
    return None


def recognize(root: Path = Path("/")) -> Match:
    """Which entry this machine is: by its device tree, else by its cores; never fails."""
    model = _tree_text(root / "proc/device-tree/model")
    compatible = _tree_text(root / "proc/device-tree/compatible").split("\0")
    if (found := match_board(model, compatible)) is not None:
        return found
    highest = max_clock(root)["value"] or max(clock(root)["value"] or [0])
    return match_cpu(cpu_info(root), float(highest), f"no board of the registry is called {model!r}; " if model else "")


def match_environment(environment: Mapping[str, Any]) -> Match:
    """Which entry a machine is by its record in a results file (`edgevision.devices.environment.environment`)."""
    try:
        model = (environment.get("board") or {}).get("value")
        if model and (found := match_board(str(model), [])) is not None:
            return found
        values = environment["cpu"]
        features = values["features"]
        cpu = CpuInfo(
            str(values["name"]),
            str(values["architecture"]),
            int(values["logical_cores"]),
            int(values["usable_cores"]),
            None if features is None else tuple(str(name) for name in features),
        )
        clocks = [(environment.get(key) or {}).get("value") for key in ("max_clock_mhz", "clock_mhz")]
        highest = max([0.0, *(float(number) for value in clocks for number in _numbers(value))])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return Match(None, None, f"the record of the machine is incomplete ({type(error).__name__}: {error})")
    return match_cpu(cpu, highest)


def match_board(model: str, compatible: list[str]) -> Match | None:
    """The board of a device tree: by an entry of ``compatible``, else by the longest part of its ``model``."""
    entries = [word.strip().lower() for word in compatible]
    words = model.strip("\0\n ").lower()
    by_model = _by_model(words)
    for name, device in BOARDS.items():
        hit = next((word for mark in device.compatible for word in entries if _is(word, mark)), None)
        if hit is not None:
            # the Super modes are another device tree of the same module
            faster = f"{name}-super"
            chosen = faster if faster in BOARDS and (hit.endswith("-super") or by_model == faster) else name
            return Match(chosen, BOARDS[chosen], f"device tree: compatible with {hit}")
    if by_model is not None:
        return Match(by_model, BOARDS[by_model], f"device tree: model {words!r}")
    return None


def match_cpu(cpu: CpuInfo, mhz: float, prefix: str = "") -> Match:
    """A board made of what was read: kinds of cores, how many, and the highest clock.

    Hardware threads of x86 count as cores, so the peak of all of them together is up to twice too high there.
    """
    if cpu.is_x86:
        name = next((key for key, marks in _X86 if cpu.has(*marks)), None)
        if name is None:
            return Match(None, None, f"{prefix}an x86 processor without AVX2 is not in the registry")
        clusters: tuple[Cluster, ...] = (Cluster(cpu.logical_cores, name, _read_clock(mhz)),)
        how = f"instructions of {cpu.name}"
    else:
        counts = _arm_cores(cpu)
        name = next(iter(counts), None)
        if name is None:
            return Match(None, None, f"{prefix}{cpu.name} is not in the registry")
        clusters = tuple(Cluster(count, core, _read_clock(mhz)) for core, count in counts.items())
        how = f"cores: {cpu.name}"
    if mhz <= 0:
        return Match(name, None, f"{prefix}{how}; the system shows no clock, so nothing more follows")
    return Match(name, Device(f"this machine ({cpu.name})", clusters), f"{prefix}{how}")


def _arm_cores(cpu: CpuInfo) -> dict[str, int]:
    """Kinds of cores in ``"4× Cortex-A76 + 4× Cortex-A55"`` that the registry knows, the quickest first."""
    titles = {core.title: name for name, core in CORES.items()}
    counts: Counter[str] = Counter()
    for part in cpu.name.split(" + "):
        match = re.fullmatch(r"(?:(\d+)× )?(.+)", part)
        if match and match[2] in titles:
            counts[titles[match[2]]] += int(match[1] or cpu.logical_cores)

    def rate(name: str) -> float:
        figure = CORES[name].rates.get("fp32")
        return figure.number if figure else 0.0

    return {name: counts[name] for name in sorted(counts, key=rate, reverse=True)}


def _by_model(words: str) -> str | None:
    marks = [(len(mark), name) for name, device in BOARDS.items() for mark in device.model if mark in words]
    return max(marks)[1] if marks else None


def _is(word: str, mark: str) -> bool:
    # NVIDIA names carrier and module together: nvidia,p3768-0000+p3767-0005
    word = word.removesuffix("-super")
    return word == mark or word.endswith((f"+{mark}", f",{mark}"))


def _read_clock(mhz: float) -> Figure:
    return Figure(round(mhz), "MHz", "read from the machine", verified=True)


def _boards_with(core: str) -> list[str]:
    return [name for name, device in BOARDS.items() if any(cluster.core == core for cluster in device.clusters)]


def _numbers(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    return [] if value is None else [value]


def _tree_text(path: Path) -> str:
    """A text of the device tree, which ends with a zero byte."""
    return (text(path) or "").strip("\0\n ")
