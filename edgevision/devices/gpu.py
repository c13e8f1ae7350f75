"""NVIDIA GPUs, asked of the driver through ctypes: no runtime is imported and nothing is allocated."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU: name and compute capability ``(major, minor)``, e.g. ``(8, 7)`` for Orin."""

    name: str
    compute_capability: tuple[int, int]

    @property
    def int8(self) -> bool:
        """Whether it multiplies int8 with int32 accumulation in hardware (``dp4a``, then tensor cores).

        From compute capability 6.1 on, save 6.2 (Jetson TX2); Jetson Nano's Maxwell (5.3) does not.
        """
        return self.compute_capability >= (6, 1) and self.compute_capability != (6, 2)


def nvidia_gpus() -> tuple[tuple[Gpu, ...], str]:
    """NVIDIA GPUs that the driver offers, and why there are none; asks the driver alone, without any runtime.

    TensorRT's own Python bindings end the process where there is no driver, so this is asked first.
    """
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return (), f"no NVIDIA driver here ({library} cannot be loaded)"
    if status := driver.cuInit(0):
        return (), f"the NVIDIA driver does not start (cuInit returned {status})"
    count = ctypes.c_int()
    if status := driver.cuDeviceGetCount(ctypes.byref(count)):
        return (), f"the NVIDIA driver cannot count its devices (cuDeviceGetCount returned {status})"
    gpus = tuple(_gpu(driver, index) for index in range(count.value))
    return gpus, "" if gpus else "the NVIDIA driver finds no GPU"


def _gpu(driver: ctypes.CDLL, index: int) -> Gpu:
    device = ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(device), index)
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(name, len(name), device)
    # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h
    capability = []
    for attribute in (75, 76):
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(value.value)
    return Gpu(name.value.decode(errors="replace"), (capability[0], capability[1]))
