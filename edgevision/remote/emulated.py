"""An emulated ARM core as a device: the same conversation, with aarch64 CPython under QEMU at the other end."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from edgevision.errors import DeviceError
from edgevision.files import atomic_path, sha256_bytes
from edgevision.remote.arm.guest import COUNT_VARIABLE
from edgevision.remote.arm.plugin import plugin, qemu, qemu_version
from edgevision.remote.arm.project import project_site
from edgevision.remote.arm.root import Root, arm_root
from edgevision.remote.device_url import Device
from edgevision.remote.transport import Process, ended, program, spawn
from edgevision.runtime.cache import cache_folder

# a shell script that is an aarch64 CPython to whoever starts it, the emulated CPython itself included: its
# sys.executable is the script. -seed and setarch: the guest's random bytes and its addresses, and with them what its
# hash tables do, are the same each time.
_WRAPPER = """#!/bin/sh
unset LD_PRELOAD LD_LIBRARY_PATH
plugin= still=
if [ -n "${variable}" ]; then
    plugin={plugin},out=${variable}
    if setarch -R true 2>/dev/null; then still="setarch -R"; fi
fi
unset {variable}
exec $still {qemu} ${{plugin:+-plugin "$plugin"}} -seed 1 -cpu {core} -L {root} -0 "$0" \\
    -E PYTHONHOME={home} -E PYTHONPATH={paths}"${{PYTHONPATH:+:$PYTHONPATH}}" -E PYTHONHASHSEED=0 \\
    -E OMP_NUM_THREADS=1 -E PYTHONDONTWRITEBYTECODE="${{{prove}-1}}" {interpreter} "$@"
"""


# set while the wrapper is proved: only then compiled modules are written, so that every later start finds the same
_PROVE_VARIABLE = "EDGEVISION_ARM_PROVE"
# what a job imports
_MODULES = (
    "ncnn",
    "onnxruntime",
    "edgevision.remote.arm.guest",
    "edgevision.runtime.ncnn",
    "edgevision.runtime.onnxruntime",
    "edgevision.parity",
    "edgevision_benchmarks.worker",
)


def emulated_python(core: str, cache_dir: str | Path | None = None) -> Path:
    """Path of a program that is aarch64 CPython on ``core``, with this project and its engines installed.

    Raises:
        DeviceError: no QEMU, compiler, apt or pip here, or the downloads fail.
        OutputError: the cache cannot be written.
    """
    emulator, library = qemu(), plugin(cache_dir)
    root, project = arm_root(cache_dir), project_site(cache_dir)
    text = _script(core, emulator, library, root, project)
    path = cache_folder(cache_dir) / f"arm-python-{core}-{sha256_bytes(text.encode())[:12]}"
    if not path.is_file():
        _prove(text, path)
    return path.resolve()


def _prove(text: str, path: Path) -> None:
    """Write the wrapper when what it starts imports everything; what is compiled by that is not compiled later."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        temporary.chmod(0o755)
        environment = {**_without_python(), _PROVE_VARIABLE: ""}
        code = f"import {', '.join(_MODULES)}"
        made = subprocess.run([temporary, "-c", code], env=environment, capture_output=True, text=True, check=False)
        if made.returncode:
            words = made.stderr.strip().splitlines()[-2:] or [f"exit code {made.returncode}"]
            raise DeviceError(f"the emulated Python does not work: {' | '.join(words)}")


def _without_python() -> dict[str, str]:
    """The environment without what this Python is told by it."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}


def _script(core: str, emulator: str, library: Path, root: Root, project: Path) -> str:
    return _WRAPPER.format(
        variable=COUNT_VARIABLE,
        prove=_PROVE_VARIABLE,
        plugin=shlex.quote(str(library.resolve())),
        qemu=shlex.quote(emulator),
        core=core,
        root=shlex.quote(str(root.of_core(core).resolve())),
        home=shlex.quote(str((root.folder / "usr").resolve())),
        paths=shlex.quote(f"{root.site.resolve()}{os.pathsep}{project.resolve()}"),
        interpreter=shlex.quote(str(root.interpreter.resolve())),
    )


class EmulatedTransport:
    """A core of ``CORES`` under QEMU, on this machine."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._python = emulated_python(device.host)
        # the wrapper's name is a hash of root, project and emulator; the emulator's version may change below it
        self.identity = f"{self._python.name} {qemu_version()}"

    def start(self) -> Process:
        """Start the emulated Python; nothing of this Python's environment reaches it."""
        try:
            return spawn([str(self._python), "-u", "-c", program()], _without_python())
        except OSError as error:
            raise DeviceError(f"cannot start the emulated Python: {error.strerror}") from error

    def explain(self, code: int, said: Sequence[str]) -> DeviceError:
        """See `Transport.explain`."""
        return ended(self.device, code, said)

    def remedy(self, python: str, package: str) -> str:
        """See `Transport.remedy`: the root is made with its engines."""
        return "an emulated device has onnxruntime and ncnn, and nothing can be installed there"
