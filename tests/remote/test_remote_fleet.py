"""Jobs on a real Dask cluster whose workers carry the kinds of devices, some of them killed in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgevision.cli import main
from edgevision.errors import DeviceError, UsageError
from edgevision.remote.device_side import FOLDER
from edgevision.remote.device_url import Device
from edgevision.remote.fleet import bench_cluster, do_job
from edgevision.remote.job import prepare

pytest.importorskip("distributed", reason="the extra fleet is not installed: pip install edgevision[fleet]")

QUICK = ("--rounds", "1", "--seconds", "0.02", "--queries", "1")
# as the verb passes its options on
SLOW = ("--threads", "1", "--rounds", "1", "--seconds", "1.0", "--queries", "1", "--offline-batch", "8", "--seed", "0")


class Cluster:
    """A scheduler and workers, each a process of its own as on boards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._start("scheduler", "dask_scheduler", "--port", "0", "--scheduler-file", str(folder / "scheduler.json"))
        self._wait(lambda: (folder / "scheduler.json").exists())

    @property
    def address(self) -> str:
        return json.loads((self.folder / "scheduler.json").read_text())["address"]

    def worker(self, name: str, kind: str) -> None:
        options = ["--name", name, "--nthreads", "1", "--no-nanny", "--resources", f"{kind}=1"]
        options += ["--local-directory", str(self.folder), "--death-timeout", "60"]
        self._start(name, "dask_worker", self.address, *options)

    def kill(self, name: str) -> None:
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes[name].wait()

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()

    def _start(self, name: str, module: str, *options: str) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        environment["TMPDIR"] = str(self.folder / "jobs")
        (self.folder / "jobs").mkdir(exist_ok=True)
        command = [sys.executable, "-m", f"distributed.cli.{module}", "--host", "127.0.0.1", "--no-dashboard", *options]
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def _wait(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it did not happen"
            time.sleep(0.05)


@pytest.fixture
def cluster(tmp_path: Path, stand_in: Path) -> Iterator[Cluster]:
    folder = tmp_path / "cluster"
    folder.mkdir()
    made = Cluster(folder)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def client(cluster: Cluster) -> Iterator[object]:
    import distributed

    with distributed.Client(cluster.address, set_as_default=False) as found:
        yield found


def kill_in_the_middle(cluster: Cluster, client, names: list[str], done: list[str]) -> None:
    """Kill workers once each has a job and a third one has one as well."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        busy = {info["name"] for info in client.scheduler_info(n_workers=-1)["workers"].values()
                if info["metrics"].get("task_counts", {}).get("executing") and info["name"]}  # fmt: skip
        begun = list((cluster.folder / "jobs").glob(f"{FOLDER}*/.stdout"))
        if busy >= set(names) and len(begun) >= len(names):
            for name in names:
                cluster.kill(name)
                done.append(name)
            return
        time.sleep(0.05)


def test_two_workers_are_killed_in_the_middle(cluster, client, make_bundle, tmp_path, capsys):
    for name, kind in (("pi-a", "pi5"), ("pi-b", "pi5"), ("nano", "jetson")):
        cluster.worker(name, kind)
    client.wait_for_workers(3, timeout=60)
    # a second and a half each, so that there is a middle
    bundles = [make_bundle(name, model=name, seconds=0.04) for name in ("one", "two")]
    job = prepare(bundles, arguments=SLOW)
    out, killed = tmp_path / "report", []
    killer = threading.Thread(target=kill_in_the_middle, args=(cluster, client, ["pi-a", "nano"], killed))
    killer.start()
    found = bench_cluster(job, client, out=out, patience_s=2.0)
    killer.join()
    assert killed == ["pi-a", "nano"]
    by_kind = {kind: [result for result in found if result.device.host == kind] for kind in ("pi5", "jetson")}
    # the other pi did what the dead one had begun: each model once
    assert [result.error for result in by_kind["pi5"]] == [None, None]
    rows = [row["model"] for result in by_kind["pi5"] for row in result.document["results"]]
    assert sorted(rows) == ["one", "two"]
    # there is no other jetson: each of its jobs is reported
    assert len(by_kind["jetson"]) == 2
    assert all("no worker of kind jetson" in result.error for result in by_kind["jetson"])

    # a new one comes: only what is missing is done
    cluster.worker("nano-2", "jetson")
    client.wait_for_workers(2, timeout=60)
    again = bench_cluster(job, client, out=out)
    assert [(result.device.host, result.kept, result.error) for result in again] == [
        ("jetson", False, None), ("jetson", False, None), ("pi5", True, None), ("pi5", True, None),
    ]  # fmt: skip
    # the verb asks for the same jobs, and finds them done
    command = ["bench", *map(str, bundles), *SLOW, "--cluster", cluster.address, "--kind", "pi5"]
    assert main([*command, "-o", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {row["model"] for row in report["results"]} == {"one", "two"}
    assert {entry["device"] for entry in report["devices"]} == {"cluster pi5"}


def test_workers_without_a_kind_and_kinds_without_a_worker(cluster, client, make_bundle):
    job = prepare([make_bundle("a")], arguments=QUICK)
    with pytest.raises(DeviceError, match="no worker of the cluster names its kind"):
        bench_cluster(job, client)
    (found,) = bench_cluster(job, client, kinds=["pi5"], patience_s=0.3)
    assert "no worker of kind pi5" in found.error


def test_what_goes_wrong_in_a_job_is_its_answer(make_bundle, monkeypatch):
    job = prepare([make_bundle("a")], arguments=("--no-such-option",))
    order = job.order(Device("local"))
    order["command"][0] = sys.executable
    blobs = {file.path: b"".join(file.pieces()) for file in job.files}
    answer = do_job(order, blobs)
    assert answer["code"] == 2
    assert any("--no-such-option" in line for line in answer["tail"])
    monkeypatch.setattr("tempfile.tempdir", "/no/such/folder")
    assert "No such file or directory" in do_job(order, blobs)["error"]


def test_addresses_of_clusters(make_bundle, monkeypatch):
    job = prepare([make_bundle("a")])
    with pytest.raises(UsageError, match="tcp://desk:8786"):
        bench_cluster(job, "desk")
    monkeypatch.setattr("edgevision.remote.fleet.CONNECT_S", 1)
    with pytest.raises(DeviceError, match="cannot be reached"):
        bench_cluster(job, "tcp://127.0.0.1:1")
