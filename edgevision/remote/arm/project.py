"""This project's own wheel, unpacked for the emulated interpreter: what a board would have from pip."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import edgevision
from edgevision.errors import DeviceError
from edgevision.files import ensure_writable, sha256_bytes, sha256_file
from edgevision.runtime.cache import cache_folder

# in a checkout: what the wheel is made of
_BESIDE = ("pyproject.toml", "README.md", "LICENSE")
_ROOMS = (
    "edgevision",
    "calibration/edgevision_calibration",
    "converters/edgevision_converters",
    "benchmarks/edgevision_benchmarks",
)
# older ones are of code that is gone
_KEPT = 3
_OLDEST_SETUPTOOLS = 77


def project_site(cache_dir: str | Path | None = None) -> Path:
    """A folder for ``PYTHONPATH`` with this project as its wheel installs it, under a name made of its content.

    Raises:
        DeviceError: the wheel cannot be built.
        OutputError: the cache cannot be written.
    """
    cache = ensure_writable(cache_folder(cache_dir))
    sources = list(_sources())
    told = "\n".join(f"{name} {sha256_file(path)}" for name, path in sources)
    folder = cache / f"arm-project-{sha256_bytes(told.encode())[:12]}"
    if folder.is_dir():
        os.utime(folder)
        return folder
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=cache))
    try:
        if _is_checkout():
            _unpack(_built(sources, temporary), temporary / "site")
        else:
            for name, path in sources:
                _copy(path, temporary / "site" / name)
        try:
            (temporary / "site").replace(folder)
        except OSError:  # another process was quicker
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _forget(cache)
    return folder


def _root() -> Path:
    return Path(edgevision.__file__).resolve().parent.parent


def _is_checkout() -> bool:
    return (_root() / "pyproject.toml").is_file() and (_root() / _ROOMS[-1]).is_dir()


def _sources() -> Iterator[tuple[str, Path]]:
    """Name below the root and path of every file that the wheel is made of."""
    root = _root()
    if not _is_checkout():
        for file in importlib.metadata.files("edgevision") or []:
            if ".." not in file.parts and "__pycache__" not in file.parts:
                yield str(file), Path(str(file.locate()))
        return
    for name in _BESIDE:
        if (root / name).is_file():
            yield name, root / name
    for room in _ROOMS:
        for path in sorted((root / room).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".pyc", ".tmp"):
                yield path.relative_to(root).as_posix(), path


def _built(sources: list[tuple[str, Path]], work: Path) -> Path:
    """Build in a copy: building leaves its traces where it is done."""
    for name, path in sources:
        _copy(path, work / "tree" / name)
    if find_spec("pip") is None:
        raise DeviceError(f"the wheel is built with pip, which {sys.executable} lacks: python -m ensurepip")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    # with what is here, if that will do: no network, and quicker
    command += ["--no-build-isolation"] if _has_setuptools() else []
    made = subprocess.run(
        [*command, "--wheel-dir", str(work / "wheel"), str(work / "tree")], capture_output=True, text=True, check=False
    )
    if made.returncode:
        raise DeviceError(f"this project's wheel cannot be built: {' | '.join(made.stderr.strip().splitlines()[-3:])}")
    return next((work / "wheel").glob("*.whl"))


def _has_setuptools() -> bool:
    try:
        return int(importlib.metadata.version("setuptools").partition(".")[0]) >= _OLDEST_SETUPTOOLS
    except importlib.metadata.PackageNotFoundError:
        return False


def _unpack(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)


def _copy(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)


def _forget(cache: Path) -> None:
    made = sorted(cache.glob("arm-project-*"), key=lambda folder: folder.stat().st_mtime, reverse=True)
    for folder in made[_KEPT:]:
        shutil.rmtree(folder, ignore_errors=True)
