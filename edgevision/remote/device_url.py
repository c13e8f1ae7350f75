"""What ``--device`` takes: ``ssh://user@host:port?python=…&dir=…``, ``emulated://cortex-a72``, ``local``."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from edgevision.errors import UsageError
from edgevision.registry import check_keys, unknown_name
from edgevision.remote.arm.cores import CORES

PYTHON_VARIABLE = "EDGEVISION_DEVICE_PYTHON"
_SCHEMES = ("ssh", "emulated", "local")
_OPTIONS = ("python", "dir")
_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*", re.ASCII)
_EXAMPLES = "expected ssh://USER@HOST, emulated://CORE or local"


@dataclass(frozen=True)
class Device:
    """A machine to measure on.

    Attributes:
        scheme: ``ssh``, ``emulated`` or ``local``.
        host: host name or alias of the user's ssh configuration; the core of an emulated device; empty for local.
        user: who logs in; None leaves it to ssh.
        port: None leaves it to ssh.
        python: interpreter on the device.
        directory: where the job's temporary folder is made; None for the device's own temporary folder.
    """

    scheme: str
    host: str = ""
    user: str | None = None
    port: int | None = None
    python: str = "python3"
    directory: str | None = None

    @property
    def name(self) -> str:
        """What to call it: ``pi@raspberry``, ``emulated cortex-a72``, ``local``."""
        if self.scheme == "ssh":
            return (f"{self.user}@" if self.user else "") + self.host + (f":{self.port}" if self.port else "")
        return f"{self.scheme} {self.host}".strip()

    @property
    def slug(self) -> str:
        """Its name as part of a file's."""
        return re.sub(r"[^A-Za-z0-9.]+", "-", self.name)


def parse_device(text: str) -> Device:
    """Take a device's URL apart.

    Raises:
        UsageError: an unknown scheme, core or option, or a host that ssh could take for an option.
    """
    if text == "local":
        text = "local://"
    parts = urlsplit(text)
    if parts.scheme not in _SCHEMES or not text.startswith(f"{parts.scheme}://"):
        raise UsageError(f"--device {text}: {_EXAMPLES}")
    if parts.fragment or parts.path.strip("/"):
        raise UsageError(f"--device {text}: a device has no path; {_EXAMPLES}, with ?python= and &dir= behind it")
    options = _options(text, parts.query)
    python = options.get("python") or os.environ.get(PYTHON_VARIABLE) or "python3"
    directory = options.get("dir")
    if parts.scheme == "local":
        return Device("local", python=python, directory=directory)
    if parts.scheme == "emulated":
        if parts.netloc not in CORES:
            raise UsageError(f"--device {text}: {unknown_name('core', parts.netloc, CORES)}")
        return Device("emulated", parts.netloc, directory=directory)
    user, host, port = _place(text, parts.netloc)
    return Device("ssh", host, user, port, python, directory)


def _place(text: str, place: str) -> tuple[str | None, str, int | None]:
    user, _, rest = place.rpartition("@")
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.%a-z]+\]|[^:\[\]]+)(?::(\d+))?", rest)
    if match is None:
        raise UsageError(f"--device {text}: cannot be read as ssh://USER@HOST:PORT")
    host, port = match[1].strip("[]"), None if match[2] is None else int(match[2])
    # a name that begins with a dash would be an option of ssh, and options can run commands
    if not (match[1].startswith("[") or _WORD.fullmatch(host)) or (user and not _WORD.fullmatch(user)):
        raise UsageError(f"--device {text}: user and host are made of letters, digits, '.', '-' and '_'")
    if port is not None and not 0 < port < 65536:
        raise UsageError(f"--device {text}: a port is 1 to 65535; got {port}")
    return user or None, host, port


def _options(text: str, query: str) -> dict[str, str]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    check_keys("option", options, _OPTIONS, where=f"--device {text}: ")
    return options
