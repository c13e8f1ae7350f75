"""Memory that was freed and is still held."""

from __future__ import annotations

import ctypes
import sys


def give_back_memory() -> None:
    """Hand freed memory back to the system.

    glibc keeps what each thread freed for that thread's next use: after a calibration more than the calibration itself
    needs. Does nothing where the C library has no such call.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        # musl and bionic return memory by themselves
        return
    trim(ctypes.c_size_t(0))
