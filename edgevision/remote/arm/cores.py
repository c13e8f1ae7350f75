"""The ARM cores that QEMU can stand in for, as their kernels describe them. The standard library alone."""

from __future__ import annotations

from dataclasses import dataclass

_BASE = "fp asimd evtstrm crc32 cpuid"
_ARMV82 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp ssbs"


@dataclass(frozen=True)
class Core:
    """What ``/proc/cpuinfo`` and the identification register say.

    Attributes:
        name: the core's own name.
        midr: main ID register: implementer, variant, part, revision (Arm's technical reference manuals).
        features: the kernel's names of its instruction set extensions.
    """

    name: str
    midr: int
    features: str


# QEMU's name → the core. Programs pick their kernels by the features: these must be no more than QEMU's core has, or
# an illegal instruction ends them.
CORES: dict[str, Core] = {
    "cortex-a53": Core("Cortex-A53", 0x410FD034, _BASE),
    "cortex-a57": Core("Cortex-A57", 0x411FD071, _BASE),
    "cortex-a72": Core("Cortex-A72", 0x410FD083, _BASE),
    "cortex-a76": Core("Cortex-A76", 0x414FD0B1, _ARMV82),
}


def cpuinfo(core: Core, count: int) -> str:
    """``/proc/cpuinfo`` of ``count`` such cores."""
    midr = core.midr
    block = (
        f"BogoMIPS\t: 108.00\nFeatures\t: {core.features}\n"
        f"CPU implementer\t: 0x{midr >> 24:02x}\nCPU architecture: 8\nCPU variant\t: 0x{midr >> 20 & 15:x}\n"
        f"CPU part\t: 0x{midr >> 4 & 0xFFF:03x}\nCPU revision\t: {midr & 15}\n\n"
    )
    return "".join(f"processor\t: {number}\n{block}" for number in range(count))
