from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
import torch
from small_recipe import recipe

from edgevision.recipe.run import RecipeRun, run_recipe


class Chain:
    """The small chain run once, undisturbed."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.lines: list[str] = []
        # stage → CPU seconds
        self.costs: dict[str, float] = {}
        self._begun: tuple[str, float] | None = None
        self.run: RecipeRun = run_recipe(recipe(), out=out, tell=self._tell)
        self._note("")

    def _tell(self, line: str) -> None:
        self.lines.append(line)
        if line[0].isdigit():
            self._note(line.split()[1])

    def _note(self, stage: str) -> None:
        now = time.process_time()
        if self._begun is not None:
            self.costs[self._begun[0]] = now - self._begun[1]
        self._begun = (stage, now)

    def copy(self, folder: Path) -> Path:
        return Path(shutil.copytree(self.out, folder))


@pytest.fixture(scope="session")
def chain(tmp_path_factory) -> Chain:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return Chain(tmp_path_factory.mktemp("chain") / "out")
    finally:
        torch.set_num_threads(before)
