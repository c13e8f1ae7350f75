"""Which JetPack a Jetson runs, and which TensorRT, CUDA and Python belong to it."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevision.devices.figures import Figure
from edgevision.devices.sensors import text

# (first, last) Jetson Linux release, without the patch → JetPack, TensorRT, CUDA, Python
_TABLE = "NVIDIA, JetPack archive and release notes; dusty-nv/jetson-containers, l4t_version.py"


@dataclass(frozen=True)
class JetPack:
    """One line of JetPack releases.

    Attributes:
        first: first release of Jetson Linux (L4T) of the line, e.g. ``(36, 4)``.
        last: its last one.
        name: of the JetPack releases.
        tensorrt: version that is part of it.
        cuda: likewise.
        python: of its Ubuntu, which its TensorRT bindings are made for.
    """

    first: tuple[int, int]
    last: tuple[int, int]
    name: str
    tensorrt: Figure
    cuda: Figure
    python: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        return {
            "name": self.name,
            "tensorrt": self.tensorrt.to_dict(),
            "cuda": self.cuda.to_dict(),
            "python": ".".join(str(part) for part in self.python),
        }


def _line(
    first: tuple[int, int], last: tuple[int, int], name: str, versions: tuple[str, str], python: int, *, verified: bool
) -> JetPack:
    tensorrt, cuda = (Figure(version, "", _TABLE, verified) for version in versions)
    return JetPack(first, last, name, tensorrt, cuda, (3, python))


JETPACKS = (
    _line((32, 7), (32, 7), "4.6.x", ("8.2.1", "10.2"), 6, verified=True),
    _line((35, 2), (35, 6), "5.1.x", ("8.5.2", "11.4"), 8, verified=True),
    _line((36, 3), (36, 3), "6.0", ("8.6.2", "12.2"), 10, verified=False),
    _line((36, 4), (36, 5), "6.1 and 6.2.x", ("10.3", "12.6"), 10, verified=True),
    _line((38, 2), (38, 4), "7.0 and 7.1", ("10.13", "13.0"), 12, verified=True),
    _line((39, 0), (39, 99), "7.2", ("10.16", "13.2"), 12, verified=True),
)


def l4t_release(root: Path = Path("/")) -> tuple[int, int] | None:
    """Release of Jetson Linux, e.g. ``(36, 4)``; None where this is no Jetson."""
    said = text(root / "etc/nv_tegra_release")
    return None if said is None else parse_l4t(said)


def parse_l4t(release: str) -> tuple[int, int] | None:
    """``"# R36 (release), REVISION: 4.3, …"`` → ``(36, 4)``; None for anything else."""
    match = re.search(r"R(\d{1,4})\s*\(release\),\s*REVISION:\s*(\d{1,4})", release)
    return (int(match[1]), int(match[2])) if match else None


def jetpack_of(release: tuple[int, int] | None) -> JetPack | None:
    """The line that a release of Jetson Linux belongs to; None for none that is known."""
    return next((line for line in JETPACKS if release is not None and line.first <= release <= line.last), None)


def python_doubt(line: JetPack, running: tuple[int, int] | None = None) -> str | None:
    """Why the TensorRT bindings of a JetPack cannot be imported by this Python; None where they can."""
    running = running or sys.version_info[:2]
    if line.python == running:
        return None
    theirs, ours = (".".join(str(part) for part in version) for version in (line.python, running))
    return f"the TensorRT bindings of JetPack {line.name} are for Python {theirs}, and this is Python {ours}"


def tensorrt_doubt(line: JetPack, version: str) -> str | None:
    """Why a TensorRT version does not go with a JetPack; None where it does."""
    belongs = str(line.tensorrt.value)
    if version.split(".")[:2] == belongs.split(".")[:2]:
        return None
    return (
        f"TensorRT {version} is installed, and JetPack {line.name} comes with {belongs}: its libraries and driver go "
        "together, and another version may not load, or fail while it compiles"
    )
