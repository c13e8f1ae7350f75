from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import pytest

from edgevision.pipeline import memory
from edgevision.pipeline.memory import give_back_memory


def resident_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return float(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library has no malloc_trim")
def test_what_was_freed_is_given_back():
    give_back_memory()
    # blocks too small to be mapped one by one; each second one stays, so that the heap cannot shrink at its end
    blocks = [bytearray(100_000) for _ in range(1000)]
    kept = blocks[::10] + blocks[-1:]
    blocks.clear()
    held = resident_mb()
    give_back_memory()
    assert resident_mb() < held - 40
    assert len(kept) == 101


@pytest.mark.parametrize(("platform", "asked"), [("darwin", 0), ("linux", 1)])
def test_where_there_is_no_such_call_nothing_happens(monkeypatch, platform, asked):
    libraries = []
    monkeypatch.setattr(sys, "platform", platform)
    # a library without the call
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: libraries.append(name) or object())
    give_back_memory()
    assert len(libraries) == asked
