"""What runs on a device: takes files in, runs one command in a temporary folder, hands back its results, cleans up.

The text of this module travels to the device as it is, so it needs the standard library alone and Python 3.7; it
tells an older interpreter, or one without EdgeVision, apart before anything is copied.

Both ends speak in lines of JSON. What the device says begins with `PREFIX`, because a login shell may print a
greeting into the same pipe:

1. desk: ``{"needs": [modules], "directory": null or path}``; device: ``hello`` with what it has.
2. desk: ``{"command": […], "files": [[path, size, sha256], …], "environment": {…}}``, then the files' bytes.
3. device: ``received``; then ``line`` for each line the command writes on standard error, and ``alive``.
   The desk sends an empty line now and then; where it falls silent, the device stops and cleans up.
4. device: ``results`` with size and hash, then their bytes; ``bye`` when the folder is gone. Or ``failed``.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any, Callable  # noqa: UP035  (collections.abc.Callable has no subscript in Python 3.7)

PREFIX = "EDGEVISION1 "
FOLDER = "edgevision-job-"
# the desk sends a sign of life every 10 s
PATIENCE_S = 60.0
_ALIVE_S = 2.0
_PIECE = 1 << 16
_TAIL_LINES = 12


class DeskGone(Exception):  # noqa: N818  (it is no error: the desk was interrupted, or the connection is lost)
    """The desk closed the connection or fell silent."""


class DamagedFile(Exception):  # noqa: N818
    """A file did not arrive as it was sent."""


class Desk:
    """The two pipes to the desk."""

    def __init__(self, source: int = 0, sink: int = 1, patience_s: float = PATIENCE_S) -> None:
        self._source, self._sink, self._patience_s = source, sink, patience_s
        self._waiting = b""
        self._lock = threading.Lock()
        self.gone = False

    def say(self, event: str, payload: bytes = b"", **values: Any) -> None:
        """Send one event, and bytes behind it."""
        text = PREFIX + json.dumps({"event": event, **values}) + "\n"
        data = memoryview(text.encode() + payload)
        with self._lock:
            try:
                while data:
                    data = data[os.write(self._sink, data[:_PIECE]) :]
            except OSError as error:
                raise DeskGone("cannot be written to") from error

    def line(self) -> bytes:
        """The next line without its end."""
        while b"\n" not in self._waiting:
            self._waiting += self._more()
        line, _, self._waiting = self._waiting.partition(b"\n")
        return line

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes, at least one."""
        if not self._waiting:
            self._waiting = self._more()
        piece, self._waiting = self._waiting[:size], self._waiting[size:]
        return piece

    def watch(self) -> None:
        """Return when the desk is gone."""
        try:
            while True:
                self._waiting = b""
                self._more()
        except DeskGone:
            self.gone = True

    def _more(self) -> bytes:
        ready, _, _ = select.select([self._source], [], [], self._patience_s)
        piece = os.read(self._source, _PIECE) if ready else b""
        if not piece:
            raise DeskGone("closed" if ready else "silent")
        return piece


class NoDesk(Desk):
    """Where nobody listens: a worker of a cluster answers when it is done."""

    def say(self, event: str, payload: bytes = b"", **values: Any) -> None:
        """Say nothing."""


def facts(needs: list[str], directory: str) -> dict[str, Any]:
    """What this device has of what a job needs."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "executable": sys.executable,
        "machine": platform.machine(),
        "directory": directory,
        "modules": {name: importlib.util.find_spec(name) is not None for name in needs},
    }
    spec = importlib.util.find_spec("edgevision")
    # a folder of that name in the home directory is no installation
    found["edgevision"] = None if spec is None or spec.origin is None else _version()
    try:
        found["free_bytes"] = shutil.disk_usage(directory).free
    except OSError as error:
        found["free_bytes"], found["directory_error"] = None, error.strerror
    return found


def _version() -> str:
    try:
        from importlib.metadata import version

        return version("edgevision")
    except Exception:  # Python 3.7 has no importlib.metadata; a tree on the path has no metadata
        return "unknown"


def sweep(parent: str) -> None:
    """Remove what a job left that was killed or lost its power: folders of ours whose process is gone."""
    begin = f"{FOLDER}{os.getuid()}-"
    for name in os.listdir(parent):  # noqa: PTH208
        pid = name[len(begin) :].partition("-")[0]
        if not name.startswith(begin) or not pid.isdigit():
            continue
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            shutil.rmtree(os.path.join(parent, name), ignore_errors=True)  # noqa: PTH118
        except OSError:
            continue


def take_in(folder: str, files: list[list[Any]], read: Callable[[int], bytes]) -> None:
    """Write the files below ``folder``, each against its hash.

    Raises:
        DamagedFile: a file has another hash, or a path that leads out of the folder.
        OSError: the disk is full.
    """
    for path, size, digest in files:
        target = os.path.normpath(os.path.join(folder, path))  # noqa: PTH118
        if not target.startswith(folder + os.sep):
            raise DamagedFile(f"{path} leads out of the job's folder")
        os.makedirs(os.path.dirname(target), exist_ok=True)  # noqa: PTH103, PTH120
        found = hashlib.sha256()
        with open(target, "wb") as stream:  # noqa: PTH123
            left = size
            while left:
                piece = read(min(left, _PIECE))
                found.update(piece)
                stream.write(piece)
                left -= len(piece)
        if found.hexdigest() != digest:
            raise DamagedFile(f"{path} arrived with the hash {found.hexdigest()[:12]}, sent was {digest[:12]}")


def work(desk: Desk, folder: str, order: dict[str, Any]) -> dict[str, Any]:
    """Run the command in ``folder``.

    Returns:
        ``code``, ``stdout`` (bytes) and ``tail`` (the last lines of standard error).

    Raises:
        DeskGone: the desk is gone; the command and all it started are ended.
    """
    command = [sys.executable if word == "{python}" else word for word in order["command"]]
    # what the command leaves in a temporary folder goes with the job's
    environment = dict(os.environ, TMPDIR=folder, **order.get("environment", {}))
    results = os.path.join(folder, ".stdout")  # noqa: PTH118
    with open(results, "wb") as out:  # noqa: PTH123
        child = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    tail: list[str] = []
    reader = threading.Thread(target=_repeat, args=(child.stderr, desk, tail), daemon=True)
    reader.start()
    try:
        _wait(child, desk)
    finally:
        _end(child)
        # all that could write into it has ended
        reader.join(10)
        if child.stderr is not None:
            child.stderr.close()
    with open(results, "rb") as stream:  # noqa: PTH123
        return {"code": child.returncode, "stdout": stream.read(), "tail": tail[-_TAIL_LINES:]}


def _repeat(stream: Any, desk: Desk, tail: list[str]) -> None:
    for raw in stream:
        text = raw.decode(errors="replace").rstrip()
        if not text:
            continue
        tail.append(text[:2000])
        del tail[:-_TAIL_LINES]
        try:
            desk.say("line", text=text[:2000])
        except DeskGone:
            desk.gone = True


def _wait(child: Any, desk: Desk) -> None:
    begun = told = time.monotonic()
    while True:
        try:
            child.wait(0.2)
            return
        except subprocess.TimeoutExpired:
            pass
        if desk.gone:
            raise DeskGone("closed")
        if time.monotonic() - told > _ALIVE_S:
            told = time.monotonic()
            desk.say("alive", seconds=round(told - begun))


def _end(child: Any) -> None:
    """End the command and whatever it started: they are a process group of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
        except OSError:
            break  # nobody is left
        if number == signal.SIGTERM:
            try:
                child.wait(3)
            except subprocess.TimeoutExpired:
                continue
    child.wait()


def make_folder(parent: str) -> str:
    """The job's own folder; its name tells whose it is."""
    sweep(parent)
    return os.path.realpath(tempfile.mkdtemp(prefix=f"{FOLDER}{os.getuid()}-{os.getpid():08}-", dir=parent))


def serve(desk: Desk) -> None:
    """One job, from the greeting to the cleaned-up folder."""
    request = json.loads(desk.line().decode())
    parent = os.path.expanduser(request["directory"] or tempfile.gettempdir())  # noqa: PTH111
    desk.say("hello", **facts(request["needs"], parent))
    order = json.loads(desk.line().decode())
    folder = ""
    try:
        folder = make_folder(parent)
        take_in(folder, order["files"], desk.read)
        desk.say("received")
        threading.Thread(target=desk.watch, daemon=True).start()
        done = work(desk, folder, order)
        digest = hashlib.sha256(done["stdout"]).hexdigest()
        about = {"size": len(done["stdout"]), "sha256": digest, "code": done["code"], "tail": done["tail"]}
        desk.say("results", payload=done["stdout"], **about)
    except DamagedFile as error:
        desk.say("failed", reason="damaged", message=str(error))
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        desk.say("failed", reason="disk" if full else "system", message=str(error), directory=parent)
    finally:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # cleaning up is not interrupted
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
    desk.say("bye")


def _leave(*unused: Any) -> None:
    raise DeskGone("ended by a signal")


def main() -> int:
    """Serve the desk at the other end of standard input and output."""
    # "-c" puts the working directory, here the home folder, first
    sys.path[:] = [path for path in sys.path if path]
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _leave)
    try:
        serve(Desk())
    except DeskGone:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
