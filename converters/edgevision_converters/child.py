"""Native tools and converter functions in a child process: a crash or a hang there is an error message here.

`run_tool` runs an executable, `run_python` a function. Both put the child into a process group of its own, end the
whole group when time runs out or the user presses Ctrl-C, and turn crash, failure and time-out into
`ConversionError` with the last lines the child printed and what to do.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from edgevision import errors
from edgevision.errors import ConversionError, EdgeVisionError

# how much of what a child printed is kept, and how much of that is quoted
_KEPT_BYTES = 64 << 10
_QUOTED_LINES = 12
_QUOTED_CHARACTERS = 1500


def run_tool(
    argv: Sequence[str | Path],
    *,
    timeout_s: float,
    cwd: str | Path | None = None,
    what: str,
    advice: str = "",
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run an executable to its end.

    Args:
        argv: the program and its arguments.
        timeout_s: seconds after which it is ended, with every process it started.
        cwd: the folder it runs in.
        what: what it is, as the subject of an error message ("pnnx, converting the graph to ncnn").
        advice: what the user can do when it fails, as a sentence without its full stop.
        env: variables to set besides those of this process.

    Returns:
        Exit code 0 and, as ``stdout``, the last 64 KiB of output and error output together.

    Raises:
        ConversionError: it cannot be started, crashed, ended with another exit code, or ran out of time.
    """
    with tempfile.TemporaryFile() as output:
        # a file rather than a pipe: a grandchild that lives on cannot make us wait for the end of its output
        code = _run_group(argv, output.fileno(), timeout_s, cwd, env, what, advice)
        text = _last_text(output.fileno())
    if code is None:
        raise _failure(what, f"took longer than {timeout_s:g} s and was ended", text, advice)
    if code < 0:
        raise _failure(what, f"crashed ({_signal_name(-code)})", text, advice)
    if code > 0:
        raise _failure(what, f"failed with exit code {code}", text, advice)
    return subprocess.CompletedProcess([str(part) for part in argv], code, text, "")


def run_python(
    function: str,
    kwargs: Mapping[str, Any],
    *,
    timeout_s: float,
    cwd: str | Path | None = None,
    what: str,
    advice: str = "",
    env: Mapping[str, str] | None = None,
) -> Any:
    """Call a Python function in a child process.

    Args:
        function: ``"package.module:function"``, importable from here.
        kwargs: its keyword arguments, values that JSON can hold; large data goes through files.
        timeout_s: seconds after which the child is ended.
        cwd: the folder it runs in.
        what: what it is, as the subject of an error message.
        advice: what the user can do when it fails, as a sentence without its full stop.
        env: variables to set besides those of this process.

    Returns:
        What the function returned, through JSON.

    Raises:
        ConversionError: the child crashed, raised something foreign, or ran out of time.
        EdgeVisionError: the function raised it; same class, same message.
    """
    with tempfile.TemporaryDirectory(prefix="edgevision-child-") as folder:
        request, answer = Path(folder, "request.json"), Path(folder, "answer.json")
        request.write_text(json.dumps({"function": function, "kwargs": dict(kwargs), "answer": str(answer)}))
        # the parent may have found its modules through sys.path alone
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        argv = [sys.executable, "-m", "edgevision_converters.child", str(request)]
        child_env = {**(env or {}), "PYTHONPATH": path}
        run_tool(argv, timeout_s=timeout_s, cwd=cwd, what=what, advice=advice, env=child_env)
        answered = json.loads(answer.read_text())
    if "error" in answered:
        kind = getattr(errors, answered["error"], ConversionError)
        raise kind(answered["message"])
    return answered["result"]


def _run_group(
    argv: Sequence[str | Path],
    output: int,
    timeout_s: float,
    cwd: str | Path | None,
    env: Mapping[str, str] | None,
    what: str,
    advice: str,
) -> int | None:
    """Exit code of the child (negative: the signal that ended it), or None when time ran out."""
    # a session of its own is a process group of its own: one kill reaches whatever the tool started
    own_group: dict[str, Any] = (
        {"start_new_session": True}
        if os.name == "posix"
        else {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
    )
    try:
        process = subprocess.Popen(
            [str(part) for part in argv],
            cwd=cwd,
            env={**os.environ, **env} if env else None,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            **own_group,
        )
    except OSError as error:
        raise _failure(what, f"cannot be started: {argv[0]}: {error.strerror}", "", advice) from error
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        # also on Ctrl-C, which reaches only this process
        _end_group(process)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody is left in the group
            os.killpg(process.pid, signal.SIGKILL)
    elif process.poll() is None:
        process.kill()
    process.wait()
    if process.stdin:
        process.stdin.close()


def _last_text(descriptor: int) -> str:
    size = os.lseek(descriptor, 0, os.SEEK_END)
    os.lseek(descriptor, max(0, size - _KEPT_BYTES), os.SEEK_SET)
    data = b""
    while piece := os.read(descriptor, _KEPT_BYTES):
        data += piece
    return data.decode("utf-8", "replace")


def _failure(what: str, happened: str, text: str, advice: str) -> ConversionError:
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    quoted = "\n".join(lines[-_QUOTED_LINES:])[-_QUOTED_CHARACTERS:]
    message = f"{what} {happened}"
    if advice:
        message += f"; {advice}"
    if quoted:
        message += f". Its last output:\n{quoted}"
    return ConversionError(message)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _end_with_parent() -> None:
    """End this process when the other end of its standard input is gone: the parent died without a word."""

    def wait() -> NoReturn:
        # os.read, not sys.stdin: a lock held on sys.stdin at interpreter shutdown is a fatal error
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _child_main(request_file: str) -> None:
    """Answer one request of `run_python`: the child's side."""
    _end_with_parent()
    request = json.loads(Path(request_file).read_text())
    module, _, name = request["function"].partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
        answer = {"result": function(**request["kwargs"])}
    except EdgeVisionError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    Path(request["answer"]).write_text(json.dumps(answer))


if __name__ == "__main__":
    _child_main(sys.argv[1])
