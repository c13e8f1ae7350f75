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


@pytest.mark.parametrize("missing", ["platform", "call"])
def test_elsewhere_nothing_happens(monkeypatch, missing):
    if missing == "platform":
        monkeypatch.setattr(sys, "platform", "darwin")
        monkeypatch.setattr(memory.ctypes, "CDLL", None)
    else:
        monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    give_back_memory()
