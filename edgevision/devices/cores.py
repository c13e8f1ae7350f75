"""Processor cores: their instructions, and how many operations they do in a cycle; a literal table.

A multiplication and its addition count as two operations. Rates are those of the vector units alone, as if operands
were always at hand; no program reaches them. INT8 on a core without dot-product instructions is `SMLAL` on one unit
beside `SADALP` on the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgevision.devices.figures import Figure

_CLANG = "clang's predefined macros for -mcpu of this core (__ARM_FEATURE_DOTPROD and its like)"
_UNIT = "operations per cycle"


@dataclass(frozen=True)
class Core:
    """A kind of processor core.

    Attributes:
        title: its name as people write it.
        isa: features that inference engines have kernels for, by the names of `edgevision.devices.cpu`.
        isa_source: where the features are from.
        rates: precision (``fp32``, ``fp16``, ``int8``) → operations per cycle. A precision that is missing runs at
            the rate of the next wider one, or nothing is known.
    """

    title: str
    isa: tuple[str, ...]
    isa_source: str
    rates: dict[str, Figure]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        rates = {precision: figure.to_dict() for precision, figure in self.rates.items()}
        return {"title": self.title, "isa": list(self.isa), "isa_source": self.isa_source, "rates": rates}


def _rates(source: str, *, fp32: float, fp16: float | None = None, int8: float, verified: bool) -> dict[str, Figure]:
    rates = {"fp32": fp32, "fp16": fp16, "int8": int8}
    return {name: Figure(rate, _UNIT, source, verified) for name, rate in rates.items() if rate is not None}


def _guide(core: str) -> str:
    return f"Arm {core} Software Optimization Guide, ASIMD floating-point (FMLA) and ASIMD integer (SDOT) instructions"


_LLVM = "LLVM, llvm/lib/Target/AArch64/AArch64Sched{}.td: units that FMLA, {} take in 128 bits"
_MANUAL = "Intel 64 and IA-32 Architectures Optimization Reference Manual"
_AMX = "Intel Advanced Matrix Extensions product brief"
_INTEL = "Intel, Introduction to Intel Deep Learning Boost (2019): {}"

_NEON = ("neon",)
_V82 = ("neon", "dotprod", "fp16")
_V9 = ("neon", "dotprod", "fp16", "i8mm", "bf16", "sve", "sve2")

CORES: dict[str, Core] = {
    "cortex-a53": Core(
        "Cortex-A53",
        _NEON,
        _CLANG,
        _rates(_LLVM.format("A53", "SMLAL and SADALP"), fp32=8, int8=10.7, verified=False),
    ),
    "cortex-a55": Core(
        "Cortex-A55",
        _V82,
        _CLANG,
        {
            "fp32": Figure(8, _UNIT, _guide("Cortex-A55")),
            "fp16": Figure(16, _UNIT, _guide("Cortex-A55")),
            "int8": Figure(32, _UNIT, _LLVM.format("A55", "SDOT"), verified=True),
        },
    ),
    "cortex-a57": Core(
        "Cortex-A57",
        _NEON,
        _CLANG,
        _rates(_LLVM.format("A57", "SMLAL and SADALP"), fp32=8, int8=16, verified=True),
    ),
    "cortex-a72": Core(
        "Cortex-A72",
        _NEON,
        _CLANG,
        _rates("Arm Cortex-A72 Software Optimization Guide (UAN 0016A), section 3", fp32=8, int8=16, verified=False),
    ),
    "cortex-a73": Core(
        "Cortex-A73",
        _NEON,
        _CLANG,
        _rates("Arm Cortex-A73 Software Optimization Guide", fp32=8, int8=16, verified=False),
    ),
    "cortex-a76": Core(
        "Cortex-A76",
        _V82,
        _CLANG,
        {
            "fp32": Figure(16, _UNIT, f"{_guide('Cortex-A76')}, p. 28: FMLA, 2 per cycle", verified=True),
            "fp16": Figure(32, _UNIT, f"{_guide('Cortex-A76')}, p. 28: FMLA, 2 per cycle", verified=True),
            "int8": Figure(64, _UNIT, _guide("Cortex-A76")),
        },
    ),
    "cortex-a78": Core(
        "Cortex-A78", _V82, _CLANG, _rates(_guide("Cortex-A78"), fp32=16, fp16=32, int8=64, verified=False)
    ),
    "cortex-a78ae": Core(
        "Cortex-A78AE", _V82, _CLANG, _rates(_guide("Cortex-A78AE"), fp32=16, fp16=32, int8=64, verified=False)
    ),
    "cortex-a510": Core(
        "Cortex-A510", _V9, _CLANG, _rates(_guide("Cortex-A510 Core"), fp32=16, fp16=32, int8=64, verified=False)
    ),
    "cortex-a710": Core(
        "Cortex-A710", _V9, _CLANG, _rates(_guide("Cortex-A710 Core"), fp32=16, fp16=32, int8=128, verified=False)
    ),
    "cortex-x1": Core(
        "Cortex-X1", _V82, _CLANG, _rates(_guide("Cortex-X1"), fp32=32, fp16=64, int8=128, verified=False)
    ),
    "cortex-x3": Core(
        "Cortex-X3", _V9, _CLANG, _rates(_guide("Cortex-X3 Core"), fp32=32, fp16=64, int8=256, verified=False)
    ),
    "cortex-x4": Core(
        "Cortex-X4",
        _V9,
        _CLANG,
        {
            "fp32": Figure(32, _UNIT, f"{_guide('Cortex-X4 Core')}: FMLA, 4 per cycle", verified=True),
            "fp16": Figure(64, _UNIT, f"{_guide('Cortex-X4 Core')}: FMLA, 4 per cycle", verified=True),
            "int8": Figure(256, _UNIT, _guide("Cortex-X4 Core")),
        },
    ),
    "neoverse-v3ae": Core(
        "Neoverse-V3AE", _V9, _CLANG, _rates(_guide("Neoverse V3AE Core"), fp32=32, fp16=64, int8=256, verified=False)
    ),
    # NVIDIA publishes no rates for its own cores
    "carmel": Core("Carmel", ("neon", "fp16"), _CLANG, {}),
    "denver-2": Core("Denver 2", _NEON, "NVIDIA Jetson TX2 Series Module Data Sheet: Armv8.0", {}),
    "x86-avx2": Core(
        "x86 with AVX2",
        ("avx2", "fma"),
        _MANUAL,
        {
            "fp32": Figure(32, _UNIT, f"{_MANUAL}: two 256-bit FMA units"),
            "int8": Figure(
                42.7,
                _UNIT,
                "Intel, Lower Numerical Precision Deep Learning Inference and Training (2018): 4 times the "
                "input at 3 times the instructions (vpmaddubsw, vpmaddwd, vpaddd)",
                verified=True,
            ),
        },
    ),
    "x86-avx512": Core(
        "x86 with AVX-512",
        ("avx2", "fma", "avx512f", "avx512bw"),
        _MANUAL,
        {
            "fp32": Figure(64, _UNIT, _INTEL.format("up to two 512-bit FMA units per core"), verified=True),
            "int8": Figure(85.3, _UNIT, _INTEL.format("three instructions without VNNI"), verified=True),
        },
    ),
    "x86-avx-vnni": Core(
        "x86 with AVX-VNNI",
        ("avx2", "fma", "avx_vnni"),
        _MANUAL,
        {
            "fp32": Figure(32, _UNIT, f"{_MANUAL}: two 256-bit FMA units"),
            "int8": Figure(128, _UNIT, f"{_MANUAL}: vpdpbusd of 256 bits, 2 per cycle"),
        },
    ),
    "x86-avx512-vnni": Core(
        "x86 with AVX512-VNNI",
        ("avx2", "fma", "avx512f", "avx512bw", "avx512_vnni"),
        "Intel, Introduction to Intel Deep Learning Boost (2019)",
        {
            "fp32": Figure(64, _UNIT, _INTEL.format("up to two 512-bit FMA units per core"), verified=True),
            "int8": Figure(256, _UNIT, _INTEL.format("three instructions become one, vpdpbusd"), verified=True),
        },
    ),
    "x86-amx": Core(
        "x86 with AMX",
        ("avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "amx_int8"),
        _AMX,
        {
            "fp32": Figure(64, _UNIT, _INTEL.format("up to two 512-bit FMA units per core"), verified=True),
            "int8": Figure(2048, _UNIT, f"{_AMX}: INT8 operations per cycle and core"),
        },
    ),
}
