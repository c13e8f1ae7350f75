"""The seam between the desk and a device: a transport starts one Python there and hands back its three pipes."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from edgevision.errors import DeviceError
from edgevision.remote import device_side
from edgevision.remote.device_url import Device

Process = subprocess.Popen[bytes]


class Transport(Protocol):
    """A way to a device."""

    @property
    def device(self) -> Device:
        """The device at the other end."""
        ...

    @property
    def identity(self) -> str:
        """What of the device decides a result and is not in its URL: the emulator and what it runs, or nothing."""
        ...

    def start(self) -> Process:
        """Start `edgevision.remote.device_side` there; its standard input, output and error are pipes.

        Raises:
            DeviceError: it cannot be started from here.
        """
        ...

    def explain(self, code: int, said: Sequence[str]) -> DeviceError:
        """Why the connection ended, from the exit code and the last lines on standard error."""
        ...

    def remedy(self, python: str, package: str) -> str:
        """What a person at the desk does to have a package on the device: the exact command, where there is one."""
        ...


def program() -> str:
    """One Python expression that runs `device_side`; no character in it means anything to any shell's quotes."""
    packed = base64.b64encode(zlib.compress(Path(device_side.__file__).read_bytes(), 9)).decode()
    # as a module of its own: annotations and exceptions look their names up in one
    return f'import base64,zlib;exec(zlib.decompress(base64.b64decode("{packed}")).decode())'


def spawn(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Process:
    """A process of its own group: Ctrl-C at the desk reaches the desk, which then ends what it began."""
    return subprocess.Popen(
        list(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=None if environment is None else dict(environment),
    )


def ended(device: Device, code: int, said: Sequence[str]) -> DeviceError:
    """The plain explanation: who ended, how, and its last words."""
    words = f"; its last words: {' | '.join(said[-3:])}" if said else ""
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return DeviceError(f"{device.name} dropped out: Python there {how}{words}")


def pip_command(python: str, package: str) -> str:
    """``python3 -m pip install "edgevision[ncnn]"``."""
    return f'{python} -m pip install "{package}"'


class LocalTransport:
    """This machine, in a fresh process."""

    identity = ""

    def __init__(self, device: Device) -> None:
        self.device = device

    def start(self) -> Process:
        """Start a Python of this machine: this one, unless the URL names another."""
        own = self.device.python == "python3"
        python = sys.executable if own else str(Path(self.device.python).expanduser())
        # what this process imports, an uninstalled source tree included, a second one of the same interpreter imports
        paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)} if own else {}
        try:
            return spawn([python, "-u", "-c", program()], {**os.environ, **paths})
        except OSError as error:
            raise DeviceError(f"cannot start {python}: {error.strerror}") from error

    def explain(self, code: int, said: Sequence[str]) -> DeviceError:
        """See `Transport.explain`."""
        return ended(self.device, code, said)

    def remedy(self, python: str, package: str) -> str:
        """See `Transport.remedy`."""
        return pip_command(python, package)


def open_transport(device: Device) -> Transport:
    """The transport of a device's scheme.

    Raises:
        DeviceError: it cannot be had on this machine (no ssh, no QEMU, no emulated root).
    """
    if device.scheme == "ssh":
        from edgevision.remote.ssh import SshTransport

        return SshTransport(device)
    if device.scheme == "emulated":
        from edgevision.remote.emulated import EmulatedTransport

        return EmulatedTransport(device)
    return LocalTransport(device)
