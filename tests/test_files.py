from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevision.errors import OutputError
from edgevision.files import atomic_path, sha256_bytes, sha256_file, write_bytes, write_json, write_text
from tests.disks import tmpfs


def only(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@settings(max_examples=50, deadline=None)
@given(first=st.binary(max_size=2000), second=st.binary(max_size=2000))
def test_written_bytes_are_read_back_and_hashed_alike(tmp_path_factory, first, second):
    path = tmp_path_factory.mktemp("files") / "deep" / "er" / "file.bin"
    for data in (first, second):
        write_bytes(path, data)
        assert path.read_bytes() == data
        assert sha256_file(path) == sha256_bytes(data) == hashlib.sha256(data).hexdigest()
    assert only(path.parent) == ["file.bin"]


def test_text_is_utf8_and_json_ends_in_a_new_line(tmp_path):
    write_text(tmp_path / "text", "äöü\n")
    assert (tmp_path / "text").read_bytes() == "äöü\n".encode()
    write_json(tmp_path / "json", {"a": [1, 2.5, None]})
    assert json.loads((tmp_path / "json").read_text()) == {"a": [1, 2.5, None]}
    assert (tmp_path / "json").read_text().endswith("}\n")


def test_hashing_reads_large_files_in_pieces(tmp_path):
    data = os.urandom(1 << 16) * 50
    (tmp_path / "large").write_bytes(data)
    assert sha256_file(tmp_path / "large") == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt(), SystemExit(2), OSError(errno.ENOENT, "x")])
@pytest.mark.parametrize("before", [None, b"old"])
def test_whatever_goes_wrong_the_old_file_stays(tmp_path, error, before):
    path = tmp_path / "file"
    if before is not None:
        path.write_bytes(before)

    def write_half() -> None:
        with atomic_path(path) as temporary:
            assert temporary.parent == tmp_path
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(type(error)) as raised:
        write_half()
    assert raised.value is error
    assert (path.read_bytes() if path.exists() else None) == before
    assert only(tmp_path) == ([] if before is None else ["file"])


def test_a_killed_process_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    program = (
        "import sys, time\nfrom edgevision.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as temporary:\n"
        "    temporary.write_bytes(b'half')\n    print('ready', flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert path.read_bytes() == b"old"
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize(
    "code", ["EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT", "EFBIG", "EIO", "EISDIR", "ENAMETOOLONG", "ELOOP"]
)
def test_problems_of_the_disk_are_output_errors(tmp_path, code):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    number = getattr(errno, code)
    with pytest.raises(OutputError) as raised, atomic_path(path):
        raise OSError(number, os.strerror(number))
    assert str(raised.value) == f"cannot write {path}: {os.strerror(number)}; choose another folder with -o"
    assert raised.value.exit_code == 1
    assert path.read_bytes() == b"old"
    assert only(tmp_path) == ["file"]


def test_a_read_only_disk_is_an_output_error(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(OutputError, match="Read-only file system; choose another folder with -o"):
        write_bytes(tmp_path / "file", b"")


def test_a_real_read_only_disk(tmp_path):
    with tmpfs(tmp_path / "disk", "ro,size=64k") as disk, pytest.raises(OutputError, match="Read-only file system"):
        write_bytes(disk / "file", b"data")


def test_a_real_full_disk_keeps_the_old_file(tmp_path):
    with tmpfs(tmp_path / "disk", "size=64k") as disk:
        write_bytes(disk / "file", b"old")
        with pytest.raises(OutputError, match="No space left on device"):
            write_bytes(disk / "file", bytes(1 << 20))
        assert (disk / "file").read_bytes() == b"old"
        assert only(disk) == ["file"]


def test_what_stands_in_the_way_is_an_output_error(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "inside", tmp_path / "file" / "a" / "b", tmp_path / "folder", Path("/dev/full/x")):
        with pytest.raises(OutputError, match=f"cannot write {path}: "):
            write_bytes(path, b"data")
    assert only(tmp_path) == ["file", "folder"]


def test_an_output_error_from_inside_passes_as_it_is(tmp_path):
    inner = OutputError("told already")
    with pytest.raises(OutputError) as raised, atomic_path(tmp_path / "file"):
        raise inner
    assert raised.value is inner


def test_results_have_the_users_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "file", b"")
        assert os.umask(0o027) == 0o027, "the umask was not put back"
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_readers_and_writers_at_once_never_see_a_half(tmp_path):
    path = tmp_path / "file"
    contents = [bytes([value]) * 100_000 for value in range(4)]
    write_bytes(path, contents[0])
    seen: set[bytes] = set()

    def write(data: bytes) -> None:
        for _ in range(20):
            write_bytes(path, data)

    writers = [threading.Thread(target=write, args=(data,)) for data in contents]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        seen.add(path.read_bytes())
    assert seen <= set(contents)
    assert only(tmp_path) == ["file"]
