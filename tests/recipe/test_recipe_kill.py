"""``kill -9`` in every stage of a chain: it ends as it would have ended."""

from __future__ import annotations

import json
import os
import random

import pytest
import torch
from killed import Killed
from small_recipe import STAGES, recipe, results, weights

import edgevision as ev
from edgevision.bundle import Bundle
from edgevision.recipe.run import run_recipe

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kill -9 is a POSIX signal")


# each draws its own moments: `EDGEVISION_KILLS=5 pytest tests/recipe` kills every stage five times
@pytest.mark.parametrize("seed", range(11, 11 + int(os.environ.get("EDGEVISION_KILLS", "1"))))
def test_killed_in_every_stage_it_ends_with_the_same_weights(chain, tmp_path, seed):
    killed = Killed(tmp_path, recipe())
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
