"""Compiles the imaginary CUDA driver and steers it."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("fake_cuda.c")
MEMORY = 64 << 20


class FakeCuda:
    """The compiled library; `path` is what ctypes loads."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("gcc") is None:
            pytest.skip("gcc, which compiles the imaginary CUDA driver, is not installed")
        self.path = folder / "libfakecuda.so"
        command = ["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread"]
        subprocess.run([*command, "-o", str(self.path), str(SOURCE)], check=True)
        self.library = ctypes.CDLL(str(self.path))

    def reset(self, devices: int = 1, init_code: int = 0, memory: int = MEMORY) -> None:
        self.library.fake_reset(devices, init_code, ctypes.c_size_t(memory))

    def fail(self, function: str, code: int) -> None:
        """Let every later call of one function return an error."""
        self.library.fake_fail(function.encode(), code)

    @property
    def alive(self) -> int:
        """Contexts, streams, events and allocations not given back."""
        return int(self.library.fake_alive())

    @property
    def has_context(self) -> bool:
        return bool(self.library.fake_has_context())
