"""A recipe in a process of its own that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from small_recipe import results, toml

ROOT = Path(__file__).parents[2]


class Killed:
    """``edgevision run`` in a process of its own, killed in a stage."""

    def __init__(self, folder: Path, values: dict[str, Any]) -> None:
        self.recipe, self.out = folder / "small.toml", folder / "out"
        self.recipe.write_text(toml(values))

    def kill_in(self, stage: str, seconds: float) -> bool:
        """Kill it so many seconds of CPU time after a stage has begun; whether the stage was still at work."""
        process = subprocess.Popen(
            [sys.executable, "-m", "edgevision", "run", str(self.recipe), "-o", str(self.out), "--quiet"],
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            self._wait(process, lambda: stage in self._results())
            begun = self._cpu(process)
            self._wait(process, lambda: self._cpu(process) >= begun + seconds)
        finally:
            process.kill()
            _, errors = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, errors.decode()
        return self._results()[stage] is None

    def _results(self) -> dict[str, str | None]:
        # whatever the moment, it can be read
        return results(self.out) if (self.out / "recipe.json").exists() else {}

    @staticmethod
    def _cpu(process: subprocess.Popen[bytes]) -> float:
        times = psutil.Process(process.pid).cpu_times()
        return float(times.user + times.system)

    @staticmethod
    def _wait(process: subprocess.Popen[bytes], condition) -> None:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            assert process.poll() is None, "it ended before it could be killed"
            if condition():
                return
            time.sleep(0.005)
        pytest.fail("the stage did not come")
