"""Whether INT8 can be expected to be faster than float, per engine, on a processor or a GPU; and why."""

from __future__ import annotations

from dataclasses import dataclass

from edgevision.devices.cpu import CpuInfo
from edgevision.devices.gpu import Gpu

X86_INT8 = ("avx512_vnni", "avx_vnni", "amx_int8")
ARM_INT8 = ("dotprod", "i8mm")


@dataclass(frozen=True)
class Verdict:
    """Whether INT8 is expected to be faster than the float model; None where only a measurement can tell."""

    int8_expected_to_help: bool | None
    why: str


def verdicts(cpu: CpuInfo, gpus: tuple[Gpu, ...] = (), why_no_gpu: str = "") -> dict[str, Verdict]:
    """What INT8 can be expected to do per target, on this processor and these GPUs."""
    return {
        "onnxruntime": _onnxruntime(cpu),
        "openvino": _openvino(cpu),
        "ncnn": _ncnn(cpu),
        "tensorrt": _tensorrt(gpus, why_no_gpu),
    }


def _onnxruntime(cpu: CpuInfo) -> Verdict:
    if cpu.features is None:
        return _unknown(cpu)
    if cpu.is_x86:
        if cpu.has(*X86_INT8):
            return Verdict(
                True,
                f"{_first(cpu, X86_INT8)} multiplies uint8 by int8 into 32 bits, and ONNX Runtime uses it when "
                "activations are uint8, as these bundles have them (MobileNetV2 with AVX512-VNNI: 0.57 of "
                "FP32's time); models of symmetric int8 activations made elsewhere can take longer than FP32",
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
            f"{_first(cpu, ARM_INT8)} is there, but on Arm OpenVINO may run INT8 layers as float, and how far it gains "
            "has not been measured here: run edgevision bench, and edgevision verify (outputs moved by 1% on an "
            "emulated Cortex-A76)",
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
            "uint8 × int8 pairs (vpmaddubsw) saturate at 16 bits, which can cost accuracy: measure it, and run "
            "edgevision verify",
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
