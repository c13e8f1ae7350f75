from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevision.errors import EngineError, OutputError
from edgevision.runtime.cache import CompiledCache, cache_folder

KEY = {"digest": "abc", "tensorrt": "10.3.0", "gpu": "Orin"}


def test_folder_is_resolved_in_the_documented_order(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("EDGEVISION_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / "home/.cache/edgevision"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert cache_folder() == tmp_path / "home/.cache/edgevision"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg/edgevision"
    monkeypatch.setenv("EDGEVISION_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "home/mine"
    assert cache_folder(tmp_path / "named") == tmp_path / "named"


def test_no_home_folder_is_an_error_that_names_the_variable(monkeypatch):
    monkeypatch.delenv("EDGEVISION_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(EngineError, match="EDGEVISION_CACHE"):
        cache_folder()


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=4),
    st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=4),
    st.binary(max_size=64),
)
def test_what_was_put_comes_back_under_its_own_key_only(tmp_path_factory, key, other, data):
    cache = CompiledCache("kind", tmp_path_factory.mktemp("cache"))
    cache.put(key, data)
    assert cache.get(key) == data
    assert cache.get(dict(reversed(key.items()))) == data
    assert (cache.get(other) == data) == (other == key)


def test_kinds_are_kept_apart(tmp_path):
    CompiledCache("tensorrt", tmp_path).put(KEY, b"plan")
    assert CompiledCache("openvino", tmp_path).get(KEY) is None
    assert CompiledCache("tensorrt", tmp_path).get(KEY) == b"plan"


DAMAGES = ["one byte", "cut short", "no data", "no sidecar", "sidecar garbage", "sidecar list"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_counts_as_missing(tmp_path, damage):
    cache = CompiledCache("tensorrt", tmp_path)
    cache.put(KEY, b"plan")
    data, sidecar = next(cache.folder.glob("*.bin")), next(cache.folder.glob("*.json"))
    if damage == "one byte":
        data.write_bytes(b"plaN")
    elif damage == "cut short":
        data.write_bytes(b"pla")
    elif damage == "no data":
        data.unlink()
    elif damage == "no sidecar":
        sidecar.unlink()
    else:
        sidecar.write_text("{" if damage == "sidecar garbage" else "[]")
    assert cache.get(KEY) is None
    cache.put(KEY, b"again")
    assert cache.get(KEY) == b"again"


def test_an_entry_renamed_to_another_key_counts_as_missing(tmp_path):
    cache = CompiledCache("tensorrt", tmp_path)
    cache.put(KEY, b"plan")
    other = {**KEY, "gpu": "Xavier"}
    cache.put(other, b"other")
    for path in cache.folder.glob("*"):
        if path.suffix == ".json" and json.loads(path.read_text())["key"] == KEY:
            ours = path.stem
        elif path.suffix == ".json":
            theirs = path.stem
    for suffix in (".bin", ".json"):
        (cache.folder / f"{ours}{suffix}").replace(cache.folder / f"{theirs}{suffix}")
    assert cache.get(other) is None


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="files have no owners here")
def test_somebody_elses_file_counts_as_missing(tmp_path, monkeypatch):
    cache = CompiledCache("tensorrt", tmp_path)
    cache.put(KEY, b"plan")
    monkeypatch.setattr(os, "geteuid", lambda: cache.folder.stat().st_uid + 1)
    assert cache.get(KEY) is None


def test_the_folder_is_private(tmp_path):
    cache = CompiledCache("tensorrt", tmp_path / "new")
    cache.put(KEY, b"plan")
    assert cache.folder.stat().st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_written_is_an_output_error_on_put_alone(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    cache = CompiledCache("tensorrt", tmp_path / "file")
    assert cache.get(KEY) is None
    with cache.lock(KEY):
        pass
    with pytest.raises(OutputError, match="EDGEVISION_CACHE"):
        cache.put(KEY, b"plan")


HOLDER = """
import sys
from edgevision.runtime.cache import CompiledCache
with CompiledCache("tensorrt", sys.argv[1]).lock({"digest": "abc", "tensorrt": "10.3.0", "gpu": "Orin"}):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no flock on Windows")
def test_another_process_waits_for_the_lock_and_death_gives_it_back(tmp_path):
    root = Path(__file__).parents[2]
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    with holder:
        assert holder.stdout.readline() == b"held\n"
        waited, entered = threading.Event(), threading.Event()

        def enter():
            with CompiledCache("tensorrt", tmp_path).lock(KEY, waiting=waited.set):
                entered.set()

        thread = threading.Thread(target=enter)
        thread.start()
        assert waited.wait(30)
        assert not entered.wait(0.2)
        with CompiledCache("tensorrt", tmp_path).lock({**KEY, "gpu": "Xavier"}, waiting=pytest.fail):
            pass  # another engine is not held up
        holder.kill()
        assert entered.wait(30)
        thread.join()


def test_the_lock_keeps_threads_of_one_process_apart(tmp_path):
    cache = CompiledCache("tensorrt", tmp_path)
    inside: list[int] = []
    most: list[int] = []

    def work():
        for _ in range(20):
            with cache.lock(KEY):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 80
