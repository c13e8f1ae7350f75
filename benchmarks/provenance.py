"""Where a figure was taken: the name of its CSV file says machine and day, its columns say versions."""

from __future__ import annotations

import csv
import io
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgevision.devices.cpu import cpu_info, usable_cores
from edgevision.files import write_text

RESULTS = Path(__file__).parent / "results"
_TELLING = ("avx512_vnni", "avx_vnni", "avx2", "i8mm", "asimddp", "asimd")


def machine() -> str:
    """Short name of this kind of machine: ``x86_64-avx512_vnni-2core``."""
    features = set(cpu_info().features or ())
    isa = next((name for name in _TELLING if name in features), "plain")
    return f"{platform.machine()}-{isa}-{usable_cores()}core"


def versions(*packages: str) -> dict[str, str]:
    """Versions of what was measured."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def save(name: str, rows: Sequence[Mapping[str, object]], packages: Sequence[str] = ()) -> Path:
    """Write rows as ``results/NAME-MACHINE-DAY.csv``, versions in every row."""
    told = versions("edgevision", *packages)
    table = [{**row, **told} for row in rows]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(dict.fromkeys(key for row in table for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    path = RESULTS / f"{name}-{machine()}-{datetime.now(timezone.utc):%Y-%m-%d}.csv"
    write_text(path, stream.getvalue())
    return path


def show(rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows, a line each."""
    for row in rows:
        print(
            "  ".join(
                f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in row.items()
            )
        )


def printed(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows, each shown as soon as it is there."""
    for row in rows:
        show([row])
        sys.stdout.flush()
        yield row


def edgevision(*arguments: str, expect: Sequence[int] = (0,)) -> int:
    """Run the command line as a user does, and return its exit code; one that was not expected ends the program."""
    command = Path(sys.executable).with_name("edgevision")
    code = subprocess.run([command, *arguments], check=False).returncode
    if code not in expect:
        sys.exit(f"edgevision {arguments[0]} ended with exit code {code}, expected {' or '.join(map(str, expect))}")
    return code
