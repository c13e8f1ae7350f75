"""Memory and size probes, and the child process in which every bundle is measured on its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from edgevision.errors import EngineError

# lines of a child's standard error that go into a message
_TAIL_LINES = 3


def peak_memory_bytes() -> int | None:
    """Greatest resident memory of this process so far, bytes; None where the system does not say.

    ``VmHWM`` before ``ru_maxrss``: the latter is inherited over fork and exec on Linux, so that a child of a big
    parent would report its parent's memory.
    """
    if (peak := _status_bytes("VmHWM")) is not None:
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, the others KiB
    return peak if sys.platform == "darwin" else peak * 1024


def steady_memory_bytes() -> int | None:
    """Resident memory of this process now, bytes; None where the system does not say."""
    return _status_bytes("VmRSS")


def _status_bytes(key: str) -> int | None:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


def size_bytes(path: str | Path) -> int:
    """Size of a bundle file, or of all files of a bundle folder."""
    path = Path(path)
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


def run_worker(job: dict[str, Any], *, timeout_s: float = 600.0) -> dict[str, Any]:
    """Do one job (see `edgevision_benchmarks.worker`) in a fresh process.

    A process of its own: engines do not disturb each other, memory and time of load are the bundle's own, and a
    crash of a native library is an error message.

    Raises:
        EngineError: the child reported an error, crashed, or ran out of time.
    """
    try:
        child = subprocess.run(
            [sys.executable, "-m", "edgevision_benchmarks.worker"],
            input=json.dumps(job).encode(),
            capture_output=True,
            timeout=timeout_s,
            env=_environment(),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"measuring did not end within {timeout_s:g} s") from error
    if child.returncode != 0:
        raise EngineError(f"the process that ran it {_ending(child.returncode)}{_tail(child.stderr)}")
    try:
        answer = json.loads(child.stdout)
    except ValueError as error:
        raise EngineError(f"the process that ran it gave no result{_tail(child.stderr)}") from error
    if "error" in answer:
        raise EngineError(answer["error"]["message"])
    return dict(answer)


def _environment() -> dict[str, str]:
    # the child imports what this process imports: an uninstalled source tree, a test's stand-in engine
    paths = [path or str(Path.cwd()) for path in sys.path]
    # and nothing else: without this, "-m" puts the working directory first
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (out of memory?)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"


def _tail(stderr: bytes) -> str:
    lines = [line.strip() for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    return f"; its last words: {' | '.join(lines[-_TAIL_LINES:])}" if lines else ""
