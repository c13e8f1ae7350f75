"""The emulated device's file system: an aarch64 CPython of this machine's own distribution, and wheels.

apt resolves and downloads for another architecture out of a private state, so neither root nor
``dpkg --add-architecture`` is needed, and nothing of this machine's packages is touched.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from edgevision.errors import DeviceError
from edgevision.files import ensure_writable, sha256_bytes, write_json
from edgevision.progress import Progress
from edgevision.remote.arm.cores import CORES, cpuinfo
from edgevision.runtime.cache import cache_folder

# what the wheels' libraries need beside the interpreter; apt adds what these need
_PACKAGES = ("libstdc++6", "libgcc-s1", "zlib1g", "libexpat1")
WHEELS = ("numpy", "pillow", "ncnn", "onnxruntime")
_GLIBCS = (17, 24, 26, 27, 28, 31, 34, 35, 36)
# part of the root's name: raise it when what is built below changes
_RECIPE = 1
_MARKER = "root.json"
_TIMEOUT_S = 600.0


class DownloadError(DeviceError):
    """What the root is made of cannot be had: there is no network, or the sources lack it."""


@dataclass(frozen=True)
class Root:
    """An unpacked root.

    Attributes:
        folder: holds ``usr``, ``site`` and one folder per core.
        interpreter: path of its CPython.
        wheels: file names of the wheels in ``site``.
    """

    folder: Path
    interpreter: Path
    wheels: tuple[str, ...]

    @property
    def site(self) -> Path:
        """The wheels, unpacked."""
        return self.folder / "site"

    def of_core(self, name: str) -> Path:
        """The root as a core of ``CORES`` shows it: the same files behind its own cpuinfo."""
        return self.folder / "cores" / name


def arm_root(cache_dir: str | Path | None = None) -> Root:
    """The root with wheels of the versions that are installed here, from the cache or newly made.

    A root that is there is whole: it is built beside its name and renamed. What was downloaded stays until then, so
    that a broken-off call goes on where it stopped.

    Raises:
        DeviceError: no apt, dpkg-deb or pip here; as `DownloadError`, the downloads fail.
        OutputError: the cache cannot be written.
    """
    cache = cache_folder(cache_dir)
    specs = [_spec(name) for name in WHEELS]
    told = json.dumps([_RECIPE, _PACKAGES, specs, sorted(CORES)])
    folder = cache / f"arm-root-{sha256_bytes(told.encode())[:12]}"
    if (folder / _MARKER).is_file():
        return _opened(folder)
    ensure_writable(cache)
    with _locked(cache / "arm-root.lock"):
        if not (folder / _MARKER).is_file():
            _build(folder, cache / "arm-downloads", specs)
    return _opened(folder)


def _opened(folder: Path) -> Root:
    marker = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
    return Root(folder, folder / marker["interpreter"], tuple(marker["wheels"]))


def _spec(name: str) -> str:
    """The version that is installed here, so that both sides compute with the same code."""
    try:
        return f"{name}=={importlib.metadata.version(name).partition('+')[0]}"
    except importlib.metadata.PackageNotFoundError:
        return name


def _build(folder: Path, downloads: Path, specs: Sequence[str]) -> None:
    with Progress("making the emulated root", 4) as progress:
        progress.advance(0, "packages")
        python, debs = _packages(downloads / "apt")
        progress.advance(1, "wheels")
        wheels = [_wheel(spec, python, downloads / "wheels") for spec in specs]
        progress.advance(1, "unpacking")
        for left in folder.parent.glob(f".{folder.name}.*"):  # of a call that was killed; nobody else is in here
            shutil.rmtree(left, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            for deb in debs:
                _tool(["dpkg-deb", "-x", str(deb), str(temporary)])
            for wheel in wheels:
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(temporary / "site")
            for name in CORES:
                _core(temporary, name)
            marker = {"interpreter": f"usr/bin/{python}", "wheels": [wheel.name for wheel in wheels]}
            write_json(temporary / _MARKER, {**marker, "packages": [deb.name for deb in debs]})
            temporary.chmod(0o755)
            temporary.replace(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(downloads, ignore_errors=True)
        progress.advance(2)


def _core(root: Path, name: str) -> None:
    """QEMU looks for a file below its prefix first: libraries ask these which kernels the core can run."""
    core, place = CORES[name], root / "cores" / name
    # as many as this machine has: the count comes from its own kernel
    count = max(4, os.cpu_count() or 1)
    for directory in ("usr", "lib", "lib64", "etc"):
        if (root / directory).is_dir():
            place.mkdir(parents=True, exist_ok=True)
            (place / directory).symlink_to(Path("..", "..", directory))
    _write(place / "proc" / "cpuinfo", cpuinfo(core, count))
    _write(place / "proc" / "device-tree" / "model", f"emulated {core.name}")
    for number in range(count):
        register = place / f"sys/devices/system/cpu/cpu{number}/regs/identification/midr_el1"
        _write(register, f"0x{core.midr:016x}\n")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _packages(state: Path) -> tuple[str, list[Path]]:
    """Name of the distribution's CPython, and the packages it needs, downloaded."""
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise DeviceError(f"an emulated device is made of Debian's packages, and this machine has no {tool}")
    for inner in ("lists/partial", "cache/archives/partial"):
        (state / inner).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    options = _apt_options(state)
    _tool(["apt-get", *options, "update", "-qq"], DownloadError)
    # apt-get update takes a network that is away for no error
    depends = _tool(["apt-cache", *options, "depends", "python3-minimal"], DownloadError)
    names = [word for word in depends.split() if word.startswith("python3.") and word.endswith("-minimal")]
    if not names:
        raise DownloadError(
            "the package sources of this machine have no python3-minimal for arm64: are they Debian's, and is there "
            "a network?"
        )
    python = names[0].removesuffix("-minimal")
    wanted = [names[0], f"lib{python}-stdlib", *_PACKAGES]
    install = ["install", "--download-only", "-y", "-qq", "--no-install-recommends"]
    _tool(["apt-get", *options, *install, *wanted], DownloadError)
    archives = sorted((state / "cache/archives").glob("*.deb"))
    # they come along as dependencies, and no program of theirs is ever run
    return python, [deb for deb in archives if not deb.name.startswith(("dpkg_", "tar_"))]


def _apt_options(state: Path) -> list[str]:
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
        "Dir::State": state,
        "Dir::State::lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state / "cache",
        "Dir::Log": state,
        "Debug::NoLocking": "1",
    }
    return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]


def _wheel(spec: str, python: str, folder: Path) -> Path:
    """Download one wheel; without the version where there is none of it for that Python."""
    if find_spec("pip") is None:
        raise DeviceError(f"wheels are downloaded with pip, which {sys.executable} lacks: python -m ensurepip")
    platforms = ["manylinux2014_aarch64", *(f"manylinux_2_{number}_aarch64" for number in _GLIBCS)]
    place = folder / spec.partition("=")[0]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python.removeprefix("python")]
    command += [word for name in platforms for word in ("--platform", name)]
    try:
        _tool([*command, "--dest", str(place), spec], DownloadError)
    except DeviceError:
        if "==" not in spec:
            raise
        _tool([*command, "--dest", str(place), spec.partition("=")[0]], DownloadError)
    return max(place.glob("*.whl"), key=lambda wheel: wheel.stat().st_mtime)


def _tool(command: Sequence[str], failure: type[DeviceError] = DeviceError) -> str:
    try:
        made = subprocess.run(list(command), capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise failure(f"making the emulated device: {command[0]}: {error}") from error
    if made.returncode:
        words = (made.stderr or made.stdout).strip().splitlines()[-3:]
        raise failure(f"making the emulated device: {Path(command[0]).name} failed: {' | '.join(words)}")
    return made.stdout


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two processes that need the same root make it once."""
    import fcntl

    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with contextlib.ExitStack() as stack:
            stack.callback(fcntl.flock, stream, fcntl.LOCK_UN)
            yield
