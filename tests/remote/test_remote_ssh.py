"""Bundles measured over a real OpenSSH connection, and everything that goes wrong on the way."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from edgevision.cli import main
from edgevision.remote.devices import bench_devices, merged
from edgevision.remote.job import prepare
from tests.disks import tmpfs

QUICK = ("--rounds", "1", "--seconds", "0.02", "--queries", "1")


def quick_job(*bundles: Path, data: Path | None = None, limit: int | None = None, reference: Path | None = None):
    return prepare(bundles, None if data is None else f"csv:{data}", limit=limit, reference=reference, arguments=QUICK)


def error_of(job, url: str) -> str:
    (result,) = bench_devices(job, [url])
    assert result.document is None
    assert result.error is not None
    return result.error


def wait_until(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def running(place: Path) -> bool:
    """The device has a job whose command has begun."""
    return any(folder.joinpath(".stdout").exists() for folder in place.glob("edgevision-job-*"))


def empty(place: Path) -> bool:
    return not list(place.iterdir())


def test_devices_side_by_side_one_of_them_switched_off(over_ssh, make_bundle, labelled, tmp_path, capsys):
    bundles = [make_bundle("a"), make_bundle("b", precision="int8", noise=0.5)]
    devices = [over_ssh("board"), over_ssh("twin"), over_ssh("gone")]
    out = tmp_path / "report"
    command = ["bench", *map(str, bundles), "--data", f"csv:{labelled}", "--limit", "10", "-o", str(out), *QUICK]
    command += [word for device in devices for word in ("--device", device)]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "gone cannot be reached" in said
    assert "Connection refused" in said
    assert "board: copying" in said
    assert "twin: running" in said or "twin: done" in said
    found = json.loads((out / "results.json").read_text())
    assert [row["bundle"] for row in found["results"]] == [str(bundles[0]), str(bundles[1])] * 2
    assert {row["n"] for row in found["results"]} == {10}
    assert all(row["latency_ms"]["p50"] > 0 for row in found["results"])
    # the noisy one was compared with the exact one, on the device
    assert found["results"][1]["reference"] == str(bundles[0])
    runs = [found, *found["further_runs"]]
    assert [run["provenance"]["device"] for run in runs] == ["board", "twin"]
    assert runs[0]["provenance"]["data"].startswith("10 of 40 pictures of csv:")
    assert empty(tmp_path / "device")

    # again: what is done is kept, the missing one is asked again
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "board: kept from before" in said
    assert "twin: kept from before" in said
    assert "gone cannot be reached" in said


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("other", "shows another host key than the one that is known for it"),
        ("stranger", "has no host key to compare its own with"),
        ("locked", "does not let this user in"),
    ],
)
def test_whom_ssh_does_not_trust(over_ssh, make_bundle, host, expected):
    said = error_of(quick_job(make_bundle("a")), over_ssh(host))
    assert said.startswith(host)
    assert expected in said


def test_a_host_that_does_not_exist(make_bundle, monkeypatch, tmp_path):
    (tmp_path / "config").write_text("")
    monkeypatch.setenv("EDGEVISION_SSH", f"ssh -F {tmp_path / 'config'}")
    said = error_of(quick_job(make_bundle("a")), "ssh://no-such-board.invalid")
    assert "no-such-board.invalid cannot be reached" in said


def test_no_ssh_at_the_desk(make_bundle, monkeypatch):
    monkeypatch.setenv("EDGEVISION_SSH", "no-such-ssh")
    assert "apt install openssh-client" in error_of(quick_job(make_bundle("a")), "ssh://board")


def test_a_board_without_python(over_ssh, make_bundle, tmp_path):
    said = error_of(quick_job(make_bundle("a")), over_ssh("board", python=tmp_path / "nowhere"))
    assert f"board has no {tmp_path / 'nowhere'}" in said
    assert "?python=" in said


def test_a_board_without_edgevision(over_ssh, make_bundle, board_python):
    bare = board_python("bare", options="-S", paths=[])
    said = error_of(quick_job(make_bundle("a", target="ncnn")), over_ssh("board", python=bare))
    assert "edgevision is not installed" in said
    assert "board '" in said
    assert said.endswith("""-m pip install "edgevision[ncnn]"'""")


def test_a_board_without_the_runtime_of_some_bundles(over_ssh, make_bundle, board_python, tmp_path):
    # -S leaves out site-packages; what is on the path is this tree, numpy and Pillow, and the stand-in engine
    packages = tmp_path / "packages"
    packages.mkdir()
    for name in ("numpy", "numpy.libs", "PIL", "pillow.libs"):
        (origin,) = [Path(path) / name for path in sys.path if path and (Path(path) / name).is_dir()][:1]
        (packages / name).symlink_to(origin)
    tree = [path for path in sys.path if (path and (Path(path) / "edgevision").is_dir()) or "benchmarks" in path]
    bare = board_python("bare", options="-S", paths=[str(tmp_path / "site"), str(packages), *tree])
    bundles = [make_bundle("a"), make_bundle("b", target="ncnn")]
    (result,) = bench_devices(quick_job(*bundles), [over_ssh("board", python=bare)], out=tmp_path / "out")
    assert result.error is None
    report = merged([result])
    assert [row.bundle for row in report.results] == [str(bundle) for bundle in bundles]
    (failure,) = report.errors
    assert failure["bundle"] == str(bundles[1])
    assert "board has no ncnn: ssh -F" in failure["error"]
    assert failure["error"].endswith("""-m pip install "edgevision[ncnn]"'""")
    # it is asked again when the runtime is there
    assert empty(tmp_path / "out" / "devices")
    assert "has no ncnn, which the bundles need" in error_of(quick_job(bundles[1]), over_ssh("board", python=bare))


def test_an_old_python_is_named(over_ssh, make_bundle, board_python):
    # its arguments are -u -c PROGRAM: the program runs, in an interpreter that says it is another
    patch = 'import platform,sys;platform.python_version=lambda:"3.8.1";exec(sys.argv[3])'
    old = board_python("old", options=f"-c '{patch}'")
    said = error_of(quick_job(make_bundle("a")), over_ssh("board", python=old))
    assert "has Python 3.8.1" in said
    assert "needs 3.10 or newer" in said


def test_a_shell_that_greets(over_ssh, make_bundle, board_python, tmp_path):
    chatty = board_python("chatty", before="echo Welcome to the board; echo EDGEVISION; echo beware >&2")
    (result,) = bench_devices(quick_job(make_bundle("a")), [over_ssh("board", python=chatty)])
    assert result.error is None
    assert len(result.document["results"]) == 1


def test_a_disk_too_small_is_told_before_anything_is_copied(over_ssh, make_bundle, tmp_path):
    with tmpfs(tmp_path / "small", "size=4k") as small:
        said = error_of(quick_job(make_bundle("a")), over_ssh("board", directory=small))
    assert "MiB free and the job needs" in said
    assert "?dir=PATH" in said


def test_a_disk_that_fills_up_while_it_is_copied(over_ssh, make_bundle, labelled, tmp_path):
    # room for bytes, but only for ten files and folders
    with tmpfs(tmp_path / "small", "size=8m,nr_inodes=10") as small:
        said = error_of(quick_job(make_bundle("a"), data=labelled), over_ssh("board", directory=small))
        assert empty(small)
    assert f"the disk of {small} is full" in said
    assert "--limit" in said


def test_a_disk_that_fills_up_while_it_measures(over_ssh, make_bundle, tmp_path):
    bundle = make_bundle("a")
    size = sum(file.size for file in quick_job(bundle).files)
    pages = -(-size // 4096) + 1
    # the bundle fits; the picture that is made for the end-to-end time does not
    with tmpfs(tmp_path / "small", f"size={4 * pages}k") as small:
        said = error_of(quick_job(bundle), over_ssh("board", directory=small))
        assert empty(small)
    assert "disk" in said
    assert "No space left on device" in said


def test_no_such_folder_on_the_device(over_ssh, make_bundle, tmp_path):
    said = error_of(quick_job(make_bundle("a")), over_ssh("board", directory=tmp_path / "missing"))
    assert "No such file or directory" in said


def test_a_connection_that_is_lost_while_the_others_go_on(over_ssh, sshd, make_bundle, tmp_path):
    slow, quick = make_bundle("slow", load="hang"), make_bundle("quick")
    place = tmp_path / "device"
    found = []
    thread = threading.Thread(target=lambda: found.extend(bench_devices(quick_job(slow), [over_ssh("board")])))
    thread.start()
    wait_until(lambda: running(place))
    sessions = sshd.sessions()
    assert sessions
    for pid in sessions:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    thread.join(60)
    assert found[0].document is None
    assert "the connection to board is lost" in found[0].error
    # the device found out by itself, ended the job and cleaned up
    wait_until(lambda: empty(place))
    (other,) = bench_devices(quick_job(quick), [over_ssh("twin")])
    assert other.error is None


def test_ctrl_c_at_the_desk_cleans_up_on_the_device(over_ssh, make_bundle, tmp_path):
    place, out = tmp_path / "device", tmp_path / "out"
    command = [sys.executable, "-m", "edgevision", "bench", str(make_bundle("slow", load="hang")), *QUICK]
    command += ["--device", over_ssh("board"), "-o", str(out)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    desk = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    wait_until(lambda: running(place))
    desk.send_signal(signal.SIGINT)
    _, said = desk.communicate(timeout=60)
    assert desk.returncode == 130
    assert b"interrupted" in said
    wait_until(lambda: empty(place))
    assert empty(out / "devices")


def test_a_job_that_fails_there_is_quoted(over_ssh, make_bundle, tmp_path):
    job = prepare([make_bundle("a")], arguments=("--no-such-option",))
    said = error_of(job, over_ssh("board"))
    assert "exit code 2" in said
    assert "--no-such-option" in said


def test_several_reports_become_one(over_ssh, make_bundle, tmp_path):
    results = bench_devices(quick_job(make_bundle("a", model="<b>net</b>")), [over_ssh("board"), "local"])
    assert [result.error for result in results] == [None, None]
    report = merged(results)
    assert [row.run for row in report.results] == [0, 1]
    page = report.save(tmp_path / "report").read_text()
    assert "<b>net</b>" not in page
