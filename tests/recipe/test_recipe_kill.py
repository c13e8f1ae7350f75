"""``kill -9`` in every stage of a chain: it ends as it would have ended."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from small_recipe import STAGES, recipe, results, toml, weights

import edgevision as ev
from edgevision.bundle import Bundle
from edgevision.recipe.run import run_recipe

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kill -9 is a POSIX signal")
ROOT = Path(__file__).parents[2]


class Killed:
    """``edgevision run`` in a process of its own, killed in a stage."""

    def __init__(self, folder: Path) -> None:
        self.recipe, self.out = folder / "small.toml", folder / "out"
        self.recipe.write_text(toml(recipe()))

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


# each draws its own moments: `EDGEVISION_KILLS=5 pytest tests/recipe` kills every stage five times
@pytest.mark.parametrize("seed", range(11, 11 + int(os.environ.get("EDGEVISION_KILLS", "1"))))
def test_killed_in_every_stage_it_ends_with_the_same_weights(chain, tmp_path, seed):
    killed = Killed(tmp_path)
    moments = random.Random(seed)
    at_work = []
    for stage in STAGES:
        seconds = moments.uniform(0.05, 0.8) * chain.costs[stage]
        at_work.append(killed.kill_in(stage, seconds))
    # in a process of its own a stage also pays for its imports: it takes longer than it took in the chain
    assert sum(at_work) >= 4
    done = run_recipe(json.loads(json.dumps(recipe())), out=killed.out)
    assert [stage.action for stage in done.stages].count("run") == 0
    for folder in ("01-base", "02-pruned", "03-distilled"):
        ours, theirs = weights(killed.out / folder), weights(chain.out / folder)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    # these hashes are of graphs, plans, tables and bundles as well
    assert results(killed.out) == results(chain.out)
    ev.load_checkpoint(killed.out / "04-qat").build()
    assert Bundle.open(killed.out / "05-int8" / "qat-onnxruntime-int8.evb").manifest.precision == "int8"
    assert not (killed.out / "replaced").exists()
