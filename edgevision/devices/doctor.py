"""`doctor`: what is here, what is missing, and whether INT8 can be expected to help on this very machine."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgevision.devices.cpu import CpuInfo, cpu_info
from edgevision.devices.environment import environment, packages
from edgevision.devices.gpu import Gpu, nvidia_gpus

# target → the distributions that bring its Python module, the usual one first
RUNTIMES: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml"),
    "openvino": ("openvino",),
    "ncnn": ("ncnn",),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "nvidia-tensorrt"),
}

X86_INT8 = ("avx512_vnni", "avx_vnni", "amx_int8")
ARM_INT8 = ("dotprod", "i8mm")


@dataclass(frozen=True)
class Verdict:
    """Whether INT8 is expected to be faster than the float model; None where only a measurement can tell."""

    int8_expected_to_help: bool | None
    why: str


def doctor(root: Path = Path("/")) -> dict[str, Any]:
    """Examine this machine; never fails, imports no runtime.

    Args:
        root: where ``proc`` and ``sys`` lie.

    Returns:
        Plain values: ``environment`` (see `edgevision.devices.environment.environment`); ``runtimes``: target →
        ``installed``, ``version``, ``install`` (the command); ``targets``: target → ``int8_expected_to_help``
        (true, false, or null: measure it) and ``why``.
    """
    return {
        "environment": environment(root),
        "runtimes": {name: _runtime(name) for name in RUNTIMES},
        "targets": {name: vars(verdict) for name, verdict in verdicts(cpu_info(root), *nvidia_gpus()).items()},
    }


def verdicts(cpu: CpuInfo, gpus: tuple[Gpu, ...] = (), why_no_gpu: str = "") -> dict[str, Verdict]:
    """What INT8 can be expected to do per target, on this processor and these GPUs."""
    return {
        "onnxruntime": _onnxruntime(cpu),
        "openvino": _openvino(cpu),
        "ncnn": _ncnn(cpu),
        "tensorrt": _tensorrt(gpus, why_no_gpu),
    }


def describe(report: dict[str, Any]) -> str:
    """What `doctor` found, as text for a terminal."""
    machine = report["environment"]
    cpu = machine["cpu"]
    features = ", ".join(cpu["features"]) if cpu["features"] is not None else f"unknown: {cpu['why']}"
    lines = [
        f"{cpu['name']} ({cpu['architecture']}), {cpu['usable_cores']} of {cpu['logical_cores']} cores usable",
        f"  instructions  {features}",
        *(f"  {name:<13} {_reading_text(machine[key], unit)}" for name, key, unit in _READINGS),
        f"  system        {machine['os']}, {machine['kernel']}, {machine['python']}",
        "",
    ]
    for gpu in machine["gpus"]:
        major, minor = gpu["compute_capability"]
        lines.insert(-1, f"  GPU           {gpu['name']}, compute capability {major}.{minor}")
    for name, runtime in report["runtimes"].items():
        state = f"{runtime['version'] or 'installed'}" if runtime["installed"] else f"missing: {runtime['install']}"
        verdict = report["targets"][name]
        answer = {True: "INT8 should help", False: "INT8 should not help", None: "INT8: measure it"}
        lines += [f"{name} {state}", f"  {answer[verdict['int8_expected_to_help']]}: {verdict['why']}"]
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


def _runtime(name: str) -> dict[str, Any]:
    spec = find_spec(name)
    # a mere folder of this name in the working directory is a namespace package without an origin
    present = spec is not None and spec.origin is not None
    return {
        "installed": present,
        "version": _version(RUNTIMES[name]) if present else None,
        "install": _install_command(name),
    }


def _version(distributions: tuple[str, ...]) -> str | None:
    return next(iter(packages(distributions).values()), None)


def _install_command(name: str) -> str:
    if name == "tensorrt" and platform.machine().lower() in {"aarch64", "arm64"}:
        # no wheel for Jetson; JetPack's package repository has the bindings
        return "sudo apt-get install python3-libnvinfer"
    return f'pip install "edgevision[{name}]"'


def _onnxruntime(cpu: CpuInfo) -> Verdict:
    if cpu.features is None:
        return _unknown(cpu)
    if cpu.is_x86:
        if cpu.has(*X86_INT8):
            return Verdict(
                True,
                f"{_first(cpu, X86_INT8)} multiplies uint8 by int8 into 32 bits, and ONNX Runtime uses it when "
                "activations are uint8, as these bundles have them (MobileNetV2 with AVX512-VNNI: 0.57 of "
                "FP32's time)",
            )
        return _x86_without_vnni(cpu)
    if cpu.has(*ARM_INT8):
        return Verdict(True, f"{_first(cpu, ARM_INT8)} computes four 8-bit products a lane; ONNX Runtime uses it")
    if cpu.is_arm:
        return _arm_without_dotprod()
    return _foreign(cpu)


def _openvino(cpu: CpuInfo) -> Verdict:
    if cpu.features is None:
        return _unknown(cpu)
    if cpu.is_x86:
        if cpu.has(*X86_INT8):
            return Verdict(
                True,
                f"{_first(cpu, X86_INT8)} is what OpenVINO's INT8 kernels are written for (MobileNetV2 with "
                "AVX512-VNNI: 0.43 of FP32's time)",
            )
        return _x86_without_vnni(cpu)
    if cpu.has(*ARM_INT8):
        return Verdict(
            None,
            f"{_first(cpu, ARM_INT8)} is there, but how far OpenVINO gains by it on Arm has not been measured here: "
            "run edgevision bench, and edgevision verify (outputs moved by 1% on an emulated Cortex-A76)",
        )
    if cpu.is_arm:
        return Verdict(
            False,
            "no dotprod instructions: OpenVINO failed to compile INT8 models on an emulated Cortex-A72; use FP32",
        )
    return _foreign(cpu)


def _ncnn(cpu: CpuInfo) -> Verdict:
    if cpu.features is None:
        return _unknown(cpu)
    depthwise = "depthwise layers stay in float, where ncnn is faster"
    if cpu.is_x86:
        if cpu.has(*X86_INT8):
            return Verdict(
                True,
                f"{_first(cpu, X86_INT8)} is used for dense convolutions; {depthwise} (MobileNetV2 with "
                "AVX512-VNNI: 0.87 of FP32's time; MobileNetV3-small does not gain)",
            )
        return _x86_without_vnni(cpu)
    if cpu.has(*ARM_INT8):
        return Verdict(
            True,
            f"{_first(cpu, ARM_INT8)} is used for dense convolutions; {depthwise}. Compare with FP16, too: on "
            "nets of large dense convolutions its arithmetic can cost fewer instructions",
        )
    if cpu.is_arm:
        return _arm_without_dotprod()
    return _foreign(cpu)


def _tensorrt(gpus: tuple[Gpu, ...], why_no_gpu: str) -> Verdict:
    if not gpus:
        return Verdict(None, f"{why_no_gpu or 'no NVIDIA GPU'}; the engine is compiled on the device that runs it")
    gpu = gpus[0]
    major, minor = gpu.compute_capability
    label = f"{gpu.name} (compute capability {major}.{minor})"
    if not gpu.int8:
        return Verdict(False, f"{label} has no INT8 arithmetic; use FP16")
    # INT8 tensor cores: Xavier's 7.2, Turing's 7.5, and all later ones
    unit = "INT8 tensor cores" if gpu.compute_capability >= (7, 2) else "the dp4a instruction, no INT8 tensor cores"
    return Verdict(True, f"{label} has {unit}")


def _x86_without_vnni(cpu: CpuInfo) -> Verdict:
    if cpu.has("avx2"):
        return Verdict(
            None,
            "AVX2 without VNNI: an 8-bit dot product takes three instructions, so the gain is smaller, and sums of "
            "uint8 × int8 pairs saturate at 16 bits, which can cost accuracy: measure it, and run edgevision verify",
        )
    return Verdict(False, "no AVX2: the engines have no quick INT8 kernels for this processor")


def _arm_without_dotprod() -> Verdict:
    return Verdict(
        False,
        "no dotprod instructions (Cortex-A53, A57, A72, A73): INT8 takes about as many instructions as FP32 "
        "(MobileNetV2 on an emulated Cortex-A72: 101.6 M FP32, 102.0 M INT8); it still makes the file smaller",
    )


def _foreign(cpu: CpuInfo) -> Verdict:
    return Verdict(None, f"nothing is known of INT8 on {cpu.architecture}: measure it with edgevision bench")


def _unknown(cpu: CpuInfo) -> Verdict:
    return Verdict(None, f"the processor's instructions are unknown ({cpu.why}): measure it with edgevision bench")


def _first(cpu: CpuInfo, names: tuple[str, ...]) -> str:
    return next(name for name in names if cpu.has(name))
