"""Runs in processes of their own: killed ones, and several that train together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from small_run import EVERYTHING, LESSON, PREPROCESS, pictures, same_bits, small_net, weights, wide_net
from torch import Tensor

from edgevision.distillation import DistillConfig
from edgevision.training import TrainConfig, train

# a feature loss has the batch's mean square as its unit, which halves of a batch do not share
LINEAR = DistillConfig(alpha=0.6, channelwise=(("conv2", "conv2"),)).to_dict()
HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def environment() -> dict[str, str]:
    values = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**values, "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)]), "OMP_NUM_THREADS": "1"}


def job(out: Path, config: dict[str, Any], init: int = 0, **net: Any) -> str:
    return json.dumps({"out": str(out), "config": config, "init": init, "net": net})


def in_this_process(out: Path, config: dict[str, Any], init: int = 0, **net: Any) -> dict[str, Tensor]:
    model = small_net(init, **net)
    train(
        model, pictures(), val_data=pictures(40, seed=9), out=out, config=TrainConfig.from_dict(config),
        preprocess=PREPROCESS,
    )  # fmt: skip
    return weights(model)


def two_processes(jobs: list[str]) -> tuple[int, str]:
    """Exit status and standard error of ``torchrun``."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen(
        [*command, str(HERE / "small_run.py"), *jobs],
        env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        _, errors = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the processes that it started, too
        pytest.fail("the processes wait for each other")
    return process.returncode, errors


def wait_for_epochs(log: Path, epochs: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and log.read_text().count("\n") >= epochs:
            return
        time.sleep(0.002)
    pytest.fail(f"the run did not come to epoch {epochs}: exit status {process.poll()}")


def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    config = {**EVERYTHING, "epochs": 40}
    out = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, str(HERE / "small_run.py"), job(out, config, dropout=0.2)],
        env=environment(),
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_epochs(out / "metrics.jsonl", 3, process)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "state" / "finished.json").exists()
    resumed = in_this_process(out, config, init=8, dropout=0.2)
    undisturbed = in_this_process(tmp_path / "whole", config, dropout=0.2)
    assert same_bits(undisturbed, resumed)
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 40


def test_a_killed_distillation_resumes_to_the_same_bits(tmp_path: Path) -> None:
    config = {**EVERYTHING, "epochs": 30}
    out = tmp_path / "killed"
    values = {"out": str(out), "config": config, "init": 0, "net": {"dropout": 0.2}, "distill": LESSON.to_dict()}
    process = subprocess.Popen(
        [sys.executable, str(HERE / "small_run.py"), json.dumps(values)], env=environment(), stderr=subprocess.DEVNULL
    )
    try:
        wait_for_epochs(out / "metrics.jsonl", 3, process)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    models = []
    for init, folder in ((8, out), (0, tmp_path / "whole")):
        models.append(small_net(init, dropout=0.2))
        train(
            models[-1], pictures(), val_data=pictures(40, seed=9), out=folder, config=TrainConfig.from_dict(config),
            preprocess=PREPROCESS, teacher=wide_net(), distill=LESSON,
        )  # fmt: skip
    assert same_bits(*map(weights, models))


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Two runs one after the other in the same processes, each with a group of its own."""
    plain, normed = {**EVERYTHING, "epochs": 3}, {**EVERYTHING, "epochs": 2, "warmup_epochs": 1}
    jobs = [job(tmp_path / "plain", plain, norm=False), job(tmp_path / "normed", normed, norm=True)]
    status, errors = two_processes(jobs)
    assert status == 0, errors

    def of_rank(name: str, rank: int) -> dict[str, Tensor]:
        return safetensors.torch.load_file(tmp_path / f"{name}-rank{rank}.safetensors")

    for name in ("plain", "normed"):
        assert same_bits(of_rank(name, 0), of_rank(name, 1)), name
        assert len((tmp_path / name / "metrics.jsonl").read_text().splitlines()) == (3 if name == "plain" else 2)
    alone = in_this_process(tmp_path / "alone", plain, norm=False)
    for name, value in of_rank("plain", 0).items():
        # sums of half batches are rounded in another order; 18 steps carry that on
        torch.testing.assert_close(value, alone[name], rtol=1e-4, atol=1e-5, msg=name)


def test_two_processes_distil_as_one(tmp_path: Path) -> None:
    """The adapters' gradients are averaged, too, and each process has the whole teacher."""
    config = {**EVERYTHING, "epochs": 2, "warmup_epochs": 1}
    values = {"config": config, "init": 0, "net": {"norm": False}, "distill": LINEAR}
    status, errors = two_processes([json.dumps({**values, "out": str(tmp_path / "both")})])
    assert status == 0, errors
    ranks = [safetensors.torch.load_file(tmp_path / f"both-rank{rank}.safetensors") for rank in (0, 1)]
    assert same_bits(*ranks)
    alone = small_net(norm=False)
    train(
        alone, pictures(), val_data=pictures(40, seed=9), out=tmp_path / "alone", config=TrainConfig.from_dict(config),
        preprocess=PREPROCESS, teacher=wide_net(), distill=DistillConfig.from_dict(LINEAR),
    )  # fmt: skip
    for name, value in ranks[0].items():
        # sums of half batches are rounded in another order; 12 steps carry that on
        torch.testing.assert_close(value, alone.state_dict()[name], rtol=1e-4, atol=1e-5, msg=name)


def test_a_mistake_of_the_first_process_stops_all(tmp_path: Path) -> None:
    """Only rank 0 sees the run folder; the others must not wait for it."""
    in_this_process(tmp_path / "run", {"epochs": 1, "batch_size": 16})
    status, errors = two_processes([job(tmp_path / "run", {"epochs": 1, "batch_size": 16, "lr": 0.2})])
    assert status != 0
    assert "config.lr is 0.1 there and 0.2 here" in errors
