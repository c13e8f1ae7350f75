"""Over the system's own ssh: keys, hosts, jump hosts and shared connections come from the user's configuration."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Sequence

from edgevision.errors import DeviceError
from edgevision.remote.device_url import Device
from edgevision.remote.transport import Process, ended, pip_command, program, spawn

# the ssh command, with options of its own where somebody wants some: "ssh -F other_config"
SSH_VARIABLE = "EDGEVISION_SSH"
# BatchMode: nobody is there to type a password. ServerAlive: a cable that was pulled is noticed within a minute.
_OPTIONS = ("BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=15", "ServerAliveCountMax=3")
# ssh's own exit code for "the connection was the problem"
_SSH_FAILED = 255
_COMMAND_NOT_FOUND = 127

# what ssh says → what it means and what to do; {name} is the device, {host} what ssh was given, {said} its own words
_MEANINGS: tuple[tuple[str, str], ...] = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED|Host key for .* has changed",
        "{name} shows another host key than the one that is known for it: another machine answers there, or it was "
        "set up anew; if you know why, remove the old key and connect once: ssh-keygen -R {host}, then {ssh}",
    ),
    (
        r"Host key verification failed|No .* host key is known for",
        "{name} is not known yet: ssh has no host key to compare its own with; connect once and confirm it: {ssh}",
    ),
    (
        r"Permission denied",
        "{name} does not let this user in ({said}); give it your key: ssh-copy-id {destination}",
    ),
    (r"Could not resolve hostname", "{name} cannot be reached: no host of that name ({said})"),
    (
        r"Connection refused|No route to host|Network is unreachable|timed out|Operation timed out|Host is down",
        "{name} cannot be reached ({said}); is it switched on, and does ssh run there?",
    ),
    (
        r"Bad configuration option|Bad owner or permissions|terminating, \d+ bad configuration",
        "ssh does not take its configuration: {said}",
    ),
)


class SshTransport:
    """A device behind ``ssh``; nothing of ours keeps running at either end."""

    identity = ""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._ssh = shlex.split(os.environ.get(SSH_VARIABLE, "ssh"))
        if not self._ssh or shutil.which(self._ssh[0]) is None:
            raise DeviceError(
                f"{' '.join(self._ssh) or SSH_VARIABLE} is not installed here: apt install openssh-client"
            )

    def start(self) -> Process:
        """Connect and start Python there."""
        options = [word for option in _OPTIONS for word in ("-o", option)]
        where = [*(["-p", str(self.device.port)] if self.device.port else []), "--", self._destination]
        remote = f"exec {remote_word(self.device.python)} -u -c {shlex.quote(program())}"
        try:
            return spawn([*self._ssh, "-T", *options, *where, remote])
        except OSError as error:
            raise DeviceError(f"cannot start {self._ssh[0]}: {error.strerror}") from error

    def explain(self, code: int, said: Sequence[str]) -> DeviceError:
        """Recognize what ssh says; whatever is not recognized is repeated."""
        text = "\n".join(said)
        if code == _SSH_FAILED:
            for pattern, meaning in _MEANINGS:
                if found := re.search(pattern, text):
                    return DeviceError(self._filled(meaning, _line_of(text, found.start())))
            last = said[-1] if said else "ssh said nothing"
            return DeviceError(f"the connection to {self.device.name} is lost ({last})")
        if code == _COMMAND_NOT_FOUND:
            return DeviceError(
                f"{self.device.name} has no {self.device.python}; name its interpreter: "
                f"--device 'ssh://{self.device.name}?python=/path/to/venv/bin/python'"
            )
        return ended(self.device, code, said)

    def remedy(self, python: str, package: str) -> str:
        """``ssh pi@raspberry 'python3 -m pip install "edgevision[ncnn]"'``."""
        return f"{self._shown_ssh} {shlex.quote(pip_command(python, package))}"

    @property
    def _destination(self) -> str:
        return f"{self.device.user}@{self.device.host}" if self.device.user else self.device.host

    @property
    def _shown_ssh(self) -> str:
        port = f" -p {self.device.port}" if self.device.port else ""
        return f"{shlex.join(self._ssh)}{port} {self._destination}"

    def _filled(self, meaning: str, said: str) -> str:
        host = f"'[{self.device.host}]:{self.device.port}'" if self.device.port else self.device.host
        port = f"-p {self.device.port} " if self.device.port else ""
        return meaning.format(
            name=self.device.name, host=host, ssh=self._shown_ssh, said=said, destination=port + self._destination
        )


def remote_word(path: str) -> str:
    """A path as one word of the remote shell, which still expands a leading ``~/``."""
    return f"~/{shlex.quote(path[2:])}" if path.startswith("~/") else shlex.quote(path)


def _line_of(text: str, position: int) -> str:
    start = text.rfind("\n", 0, position) + 1
    return text[start:].partition("\n")[0].strip().strip("@ ")
