"""`doctor`: what is here, what is missing, and whether INT8 can be expected to help on this very machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgevision.devices.cpu import cpu_info
from edgevision.devices.environment import environment
from edgevision.devices.gpu import nvidia_gpus
from edgevision.devices.jetpack import jetpack_of, l4t_release
from edgevision.devices.registry import recognize
from edgevision.devices.runtimes import RUNTIMES, doubt_lines, import_doubt, machine_findings, runtime
from edgevision.devices.verdicts import Verdict, verdicts

__all__ = ["RUNTIMES", "Verdict", "describe", "doctor", "doubts", "try_imports", "verdicts"]


def doctor(root: Path = Path("/")) -> dict[str, Any]:
    """Examine this machine; never fails, and imports no runtime into this process.

    Args:
        root: where ``proc``, ``sys`` and ``etc`` lie.

    Returns:
        Plain values: ``environment`` (see `edgevision.devices.environment.environment`); ``device``: the entry of the
        device registry, ``name``, ``title``, ``how``; ``jetpack``: of a Jetson, else None; ``findings``: what is
        doubtful about the machine, each ``what`` and ``mend``; ``runtimes``: target → ``installed``, ``version``,
        ``install`` (the command), ``doubts`` (as ``findings``); ``targets``: target → ``int8_expected_to_help``
        (true, false, or null: measure it) and ``why``.
    """
    cpu = cpu_info(root)
    gpus, why_no_gpu = nvidia_gpus()
    line = jetpack_of(l4t_release(root))
    return {
        "environment": environment(root),
        "device": recognize(root).to_dict(),
        "jetpack": None if line is None else line.to_dict(),
        "findings": machine_findings(root),
        "runtimes": {name: runtime(name, cpu, gpus, why_no_gpu, root=root) for name in RUNTIMES},
        "targets": {name: vars(verdict) for name, verdict in verdicts(cpu, gpus, why_no_gpu).items()},
    }


def try_imports(report: dict[str, Any]) -> dict[str, Any]:
    """The same report after importing each installed runtime in a process of its own: what cannot be is a doubt."""
    tried = {}
    for name, state in report["runtimes"].items():
        found = [import_doubt(name)] if state["installed"] else []
        tried[name] = {**state, "doubts": [*state["doubts"], *(doubt for doubt in found if doubt is not None)]}
    return {**report, "runtimes": tried}


def doubts(report: dict[str, Any]) -> list[str]:
    """What ``--strict`` does not let pass: no runtime at all, and every doubt about one that is installed."""
    found = []
    for name, runtime_report in report["runtimes"].items():
        found += [f"{name}: {doubt['what']}" for doubt in runtime_report["doubts"]]
    if not any(runtime_report["installed"] for runtime_report in report["runtimes"].values()):
        found.append("no runtime is installed")
    return found


def describe(report: dict[str, Any]) -> str:
    """What `doctor` found, as text for a terminal."""
    machine = report["environment"]
    cpu = machine["cpu"]
    features = ", ".join(cpu["features"]) if cpu["features"] is not None else f"unknown: {cpu['why']}"
    lines = [
        f"{cpu['name']} ({cpu['architecture']}), {cpu['usable_cores']} of {cpu['logical_cores']} cores usable",
        f"  instructions  {features}",
        *(f"  {name:<13} {_reading_text(machine[key], unit)}" for name, key, unit in _READINGS),
        f"  registry      {report['device']['name'] or 'not recognized'} ({report['device']['how']})",
        f"  system        {machine['os']}, {machine['kernel']}, {machine['python']}",
    ]
    if report["jetpack"] is not None:
        pack = report["jetpack"]
        lines.append(
            f"  JetPack       {pack['name']}: TensorRT {pack['tensorrt']['value']}, CUDA {pack['cuda']['value']}"
        )
    for gpu in machine["gpus"]:
        major, minor = gpu["compute_capability"]
        lines.append(f"  GPU           {gpu['name']}, compute capability {major}.{minor}")
    lines += doubt_lines(report["findings"])
    lines.append("")
    for name, runtime_report in report["runtimes"].items():
        missing = f"missing: {runtime_report['install']}"
        state = f"{runtime_report['version'] or 'installed'}" if runtime_report["installed"] else missing
        verdict = report["targets"][name]
        answer = {True: "INT8 should help", False: "INT8 should not help", None: "INT8: measure it"}
        lines += [f"{name} {state}", *doubt_lines(runtime_report["doubts"])]
        lines.append(f"  {answer[verdict['int8_expected_to_help']]}: {verdict['why']}")
    return "\n".join(lines)


# label, key in the environment, unit
_READINGS = (
    ("board", "board", ""),
    ("clock", "clock_mhz", " MHz"),
    ("governor", "governor", ""),
    ("temperature", "temperature_c", " °C"),
    ("load", "load_average", ""),
)


def _reading_text(reading: dict[str, Any], unit: str) -> str:
    value = reading["value"]
    if value is None:
        return str(reading["why"])
    if isinstance(value, dict):
        return ", ".join(f"{key} {number:g}{unit}" for key, number in value.items())
    if isinstance(value, list):
        low, high = min(value), max(value)
        return f"{low:g}{unit}" if low == high else f"{low:g} to {high:g}{unit}"
    return f"{value}{unit}"
