"""The runtimes of this machine: which are installed, what is wrong with them, and the command that mends it."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgevision.devices.cpu import CpuInfo
from edgevision.devices.environment import packages
from edgevision.devices.gpu import Gpu
from edgevision.devices.jetpack import JetPack, jetpack_of, l4t_release, python_doubt, tensorrt_doubt

# target → the distributions that bring its Python module, the usual one first
RUNTIMES: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml"),
    "openvino": ("openvino",),
    "ncnn": ("ncnn",),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "nvidia-tensorrt"),
}

# oldest version that the backends are written for; the extras of the package ask for the same
OLDEST: dict[str, tuple[int, ...]] = {
    "onnxruntime": (1, 17),
    "openvino": (2024, 4),
    "ncnn": (1, 0, 20240410),
    "tensorrt": (8, 5),
}

# importing OpenVINO from a memory card takes most of a minute
_IMPORT_TIMEOUT_S = 120.0


def runtime(
    name: str,
    cpu: CpuInfo,
    gpus: tuple[Gpu, ...],
    why_no_gpu: str,
    *,
    root: Path = Path("/"),
) -> dict[str, Any]:
    """One runtime: ``installed``, ``version``, ``install`` (the command) and ``doubts`` (``what`` and ``mend``).

    Args:
        name: key of `RUNTIMES`.
        cpu: the processor.
        gpus: NVIDIA GPUs.
        why_no_gpu: why there is none.
        root: where ``etc`` lies.
    """
    spec = find_spec(name)
    # a mere folder of this name in the working directory is a namespace package without an origin
    present = spec is not None and spec.origin is not None
    found = packages(RUNTIMES[name]) if present else {}
    version = next(iter(found.values()), None)
    doubts: list[dict[str, str]] = []
    if present:
        doubts += _packaging_doubts(name, found, version)
        doubts += _machine_doubts(name, version, cpu, gpus, why_no_gpu, root)
    return {"installed": present, "version": version, "install": install_command(name), "doubts": doubts}


def install_command(name: str) -> str:
    """The command that installs a runtime on this machine."""
    if name == "tensorrt" and platform.machine().lower() in {"aarch64", "arm64"}:
        # no wheel for Jetson; JetPack's package repository has the bindings
        return "sudo apt-get install python3-libnvinfer"
    return f'pip install "edgevision[{name}]"'


def import_doubt(name: str) -> dict[str, str] | None:
    """The doubt about a runtime that cannot be imported: ``what`` and ``mend``; None where it can be."""
    said = import_failure(name)
    if said is None:
        return None
    package = next(iter(packages(RUNTIMES[name])), name)
    return _doubt(f"cannot be imported: {said}", f"pip install --force-reinstall {package}")


def import_failure(name: str) -> str | None:
    """What goes wrong when a module is imported in a process of its own; None where nothing does."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", f"import {name}"],
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=_IMPORT_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it does not return within {_IMPORT_TIMEOUT_S:g} s"
    except OSError as error:
        return f"no process can be started ({error.strerror})"
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return f"it ends the process (signal {-done.returncode})"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {done.returncode}"


def machine_findings(root: Path = Path("/")) -> list[dict[str, str]]:
    """What is doubtful about the machine itself, whatever is installed: ``what`` and ``mend``."""
    release = l4t_release(root)
    line = jetpack_of(release)
    if release is None:
        return []
    if line is None:
        what = f"Jetson Linux {release[0]}.{release[1]} belongs to no JetPack that is known here"
        return [_doubt(what, "sudo apt-get install nvidia-jetpack")]
    told = python_doubt(line)
    return [_doubt(told, _python_mend(line))] if told else []


def _python_mend(line: JetPack) -> str:
    if line.python < (3, 10):
        return "flash JetPack 6 or later where the module takes it; else use onnxruntime or ncnn, which need no JetPack"
    version = ".".join(str(part) for part in line.python)
    return f"python{version} -m venv --system-site-packages .venv, and install edgevision in it"


def _packaging_doubts(name: str, found: dict[str, str], version: str | None) -> list[dict[str, str]]:
    doubts = []
    if len(found) > 1 and name == "onnxruntime":
        both = " ".join(found)
        what = f"{' and '.join(found)} are installed over each other: which one runs is a matter of chance"
        doubts.append(_doubt(what, f"pip uninstall -y {both} && pip install {next(iter(found))}"))
    if version is not None and parse_version(version) < OLDEST[name]:
        wanted = ".".join(str(part) for part in OLDEST[name])
        doubts.append(
            _doubt(f"version {version} is older than {wanted}", f'pip install --upgrade "edgevision[{name}]"')
        )
    return doubts


def _machine_doubts(
    name: str, version: str | None, cpu: CpuInfo, gpus: tuple[Gpu, ...], why_no_gpu: str, root: Path
) -> list[dict[str, str]]:
    if name == "openvino" and cpu.is_arm and cpu.features is not None and not cpu.has("dotprod"):
        what = "without dotprod instructions OpenVINO failed to compile INT8 models on an emulated Cortex-A72"
        return [_doubt(what, "use FP32 bundles, or ncnn")]
    if name != "tensorrt":
        return []
    doubts = []
    if not gpus:
        doubts.append(
            _doubt(f"it cannot run: {why_no_gpu}", "install NVIDIA's driver, and see that nvidia-smi answers")
        )
    line = jetpack_of(l4t_release(root))
    if line is not None and version is not None and (told := tensorrt_doubt(line, version)):
        doubts.append(_doubt(told, "sudo apt-get install --reinstall tensorrt python3-libnvinfer"))
    return doubts


def parse_version(version: str) -> tuple[int, ...]:
    """``"1.17.0rc1"`` → ``(1, 17, 0)``: whole numbers up to the first part that is none."""
    parts: list[int] = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        parts.append(int(digits))
        if digits != part:
            break
    return tuple(parts)


def doubt_lines(found: Sequence[dict[str, str]]) -> list[str]:
    """Doubts and how to mend them, as text for a terminal."""
    return [line for doubt in found for line in (f"  ! {doubt['what']}", f"    to mend it: {doubt['mend']}")]


def _doubt(what: str, mend: str) -> dict[str, str]:
    return {"what": what, "mend": mend}
