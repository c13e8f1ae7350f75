"""The counting plugin, compiled on this machine and kept."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from edgevision.errors import DeviceError
from edgevision.files import atomic_path, sha256_bytes
from edgevision.runtime.cache import cache_folder

SOURCE = Path(__file__).with_name("icount.c")
QEMU = "qemu-aarch64"
# process ids that no process has: see icount.c
MARK_BEGIN, MARK_END = 0x45560001, 0x45560002


def qemu() -> str:
    """Path of QEMU's user mode for aarch64.

    Raises:
        DeviceError: it is not installed.
    """
    found = shutil.which(QEMU)
    if found is None:
        raise DeviceError(f"an emulated device needs {QEMU}: apt install qemu-user")
    return found


def qemu_version() -> str:
    """The first line of ``qemu-aarch64 --version``."""
    said = subprocess.run([qemu(), "--version"], capture_output=True, text=True, check=False)
    return said.stdout.partition("\n")[0].removeprefix("qemu-aarch64 version ").strip()


def plugin(cache_dir: str | Path | None = None) -> Path:
    """The compiled plugin; compiles it where the cache has none of this source.

    Raises:
        DeviceError: there is no C compiler, or it fails.
    """
    digest = sha256_bytes(SOURCE.read_bytes())[:12]
    library = cache_folder(cache_dir) / f"icount-{digest}.so"
    if library.is_file():
        return library
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise DeviceError("counting instructions needs a C compiler: apt install gcc libc6-dev")
    with atomic_path(library) as temporary:
        # the plugin's interface is QEMU's own and found when it is loaded
        command = [compiler, "-std=c11", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-fvisibility=hidden"]
        made = subprocess.run(
            [*command, "-o", str(temporary), str(SOURCE)], capture_output=True, text=True, check=False
        )
        if made.returncode:
            raise DeviceError(f"{compiler} cannot compile the counting plugin: {made.stderr.strip()[-500:]}")
    return library
