"""A real OpenSSH server on the loopback address, with keys and configuration of its own."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.benchmarks.conftest import labelled, make_bundle, stand_in

__all__ = ["labelled", "make_bundle", "stand_in"]

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@dataclass(frozen=True)
class Server:
    """A running sshd; ``board`` and ``twin`` are its names, ``other`` shows another key, ``stranger`` is not known."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def ssh(self) -> str:
        return f"ssh -F {self.folder / 'config'}"

    def sessions(self) -> list[int]:
        """Processes of open connections: the server's children."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]


def keygen(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(100):
        assert process.poll() is None, "the server ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("the server does not listen")


@pytest.fixture(scope="session")
def sshd(tmp_path_factory) -> Iterator[Server]:
    if SSHD is None or shutil.which("ssh") is None or shutil.which("ssh-keygen") is None:
        pytest.skip("OpenSSH's server and client are not installed: apt install openssh-server openssh-client")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where it locks itself in before a user is known
    folder = tmp_path_factory.mktemp("sshd")
    host, user, port = keygen(folder / "host"), keygen(folder / "user"), free_port()
    wrong = keygen(folder / "wrong")
    (folder / "authorized").write_text(Path(f"{user}.pub").read_text())
    settings = f"""
        Port {port}
        ListenAddress 127.0.0.1
        HostKey {host}
        AuthorizedKeysFile {folder / "authorized"}
        PidFile {folder / "pid"}
        UsePAM no
        StrictModes no
        PermitRootLogin yes
        PasswordAuthentication no
        KbdInteractiveAuthentication no
    """
    (folder / "sshd_config").write_text(settings)
    (folder / "known").write_text(
        "".join(f"{name} {Path(f'{key}.pub').read_text()}" for name, key in
                (("board", host), ("twin", host), ("locked", host), ("other", wrong)))
    )  # fmt: skip
    (folder / "config").write_text(client_configuration(folder, port, user, wrong))
    process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port, process)
        yield Server(folder, port, process)
    finally:
        process.terminate()
        process.wait(10)


def client_configuration(folder: Path, port: int, user: Path, wrong: Path) -> str:
    names = "".join(
        f"\nHost {name}\n    HostKeyAlias {name}\n" for name in ("board", "twin", "other", "stranger", "locked", "gone")
    )
    return f"""{names}
        Host locked
            IdentityFile {wrong}
        Host gone
            Port {free_port()}
        Host * !locked
            IdentityFile {user}
        Host *
            HostName 127.0.0.1
            Port {port}
            IdentitiesOnly yes
            IdentityAgent none
            UserKnownHostsFile {folder / "known"}
            GlobalKnownHostsFile /dev/null
            StrictHostKeyChecking yes
    """


@pytest.fixture
def board_python(tmp_path: Path) -> Callable[..., Path]:
    """Write a script that is a Python of its own: of the same packages as this one, unless told otherwise."""

    def write(name: str = "python", *, before: str = "", options: str = "", paths: list[str] | None = None) -> Path:
        chosen = [path for path in sys.path if path] if paths is None else paths
        script = tmp_path / name
        script.write_text(
            f"#!/bin/sh\n{before}\nexport PYTHONPATH={shlex.quote(os.pathsep.join(chosen))}\n"
            f'exec {shlex.quote(sys.executable)} {options} "$@"\n'
        )
        script.chmod(0o755)
        return script

    return write


@pytest.fixture
def over_ssh(sshd: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, board_python) -> Callable[..., str]:
    """URL of a device behind the server: ``over_ssh("board")``; its job folders are made in ``tmp_path/device``."""
    monkeypatch.setenv("EDGEVISION_SSH", sshd.ssh)
    place = tmp_path / "device"
    place.mkdir()

    def url(host: str, *, python: Path | None = None, directory: Path | None = None) -> str:
        return f"ssh://{host}?python={python or board_python()}&dir={directory or place}"

    return url
