"""Where what was compiled on this device is kept, and found again only if it is exactly what is wanted.

An engine compiled by TensorRT is native code: to load one is to run it. So the cache hands out only files whose
sidecar carries the whole key that is asked for (model, engine version, GPU, flags) and the SHA-256 of the bytes, and
that belong to the user who asks; anything else counts as missing and is compiled again.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgevision.errors import EngineError, OutputError
from edgevision.files import sha256_bytes, write_bytes, write_json

try:
    import fcntl
except ImportError:  # Windows has no flock; there two processes may compile the same engine, and either's is kept
    fcntl = None  # type: ignore[assignment]

ENVIRONMENT = "EDGEVISION_CACHE"


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """The folder for what is compiled on this device; it need not exist.

    In this order: ``cache_dir``, the environment's EDGEVISION_CACHE, XDG_CACHE_HOME/edgevision,
    ``~/.cache/edgevision``.

    Raises:
        EngineError: none of them is given and the user has no home folder.
    """
    if chosen := cache_dir or os.environ.get(ENVIRONMENT):
        return Path(chosen).expanduser()
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if xdg.is_absolute():  # the XDG specification has relative ones ignored
        return xdg / "edgevision"
    try:
        return Path.home() / ".cache" / "edgevision"
    except RuntimeError as error:
        raise EngineError(f"no home folder to keep compiled engines in; name one with {ENVIRONMENT}") from error


class CompiledCache:
    """Compiled engines of one kind, each under a key: what it was compiled from, with and for.

    Args:
        kind: the engine, e.g. ``"tensorrt"``; a folder of its own.
        cache_dir: see `cache_folder`.
    """

    def __init__(self, kind: str, cache_dir: str | Path | None = None) -> None:
        self.folder = cache_folder(cache_dir) / kind

    def get(self, key: Mapping[str, str]) -> bytes | None:
        """What was put under ``key``; None where nothing was, or where it is damaged or somebody else's."""
        data_path, sidecar_path = self._paths(key)
        try:
            sidecar = json.loads(sidecar_path.read_bytes())
            with data_path.open("rb") as stream:
                # asked of the open file, so that it cannot be exchanged between the question and the reading
                if hasattr(os, "geteuid") and os.fstat(stream.fileno()).st_uid != os.geteuid():
                    return None
                data = stream.read()
        except (OSError, ValueError):
            return None
        if not isinstance(sidecar, dict) or sidecar.get("key") != dict(key):
            return None
        return data if sidecar.get("sha256") == sha256_bytes(data) else None

    def put(self, key: Mapping[str, str], data: bytes) -> None:
        """Keep ``data`` under ``key``, in place of what was there.

        Raises:
            OutputError: the folder cannot be written or the disk is full.
        """
        data_path, sidecar_path = self._paths(key)
        self._make_folder()
        # the sidecar last: bytes without their own sidecar count as missing
        write_bytes(data_path, data)
        write_json(sidecar_path, {"key": dict(key), "bytes": len(data), "sha256": sha256_bytes(data)})

    @contextmanager
    def lock(self, key: Mapping[str, str], waiting: Callable[[], Any] | None = None) -> Iterator[None]:
        """Keep other threads and processes from compiling the same engine meanwhile.

        ``waiting`` is called once if somebody else holds the lock. Where the folder cannot be written there is
        nothing to protect, and no lock is taken.
        """
        stream = None
        if fcntl is not None:
            with contextlib.suppress(OSError, OutputError):
                self._make_folder()
                stream = self._paths(key)[0].with_suffix(".lock").open("wb")
        if stream is None:
            yield
            return
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting is not None:
                    waiting()
                fcntl.flock(stream, fcntl.LOCK_EX)
            # closing the file, or dying, gives the lock back
            yield

    def _make_folder(self) -> None:
        try:
            # private: who can write here can have this user run any code
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise OutputError(
                f"cannot write {self.folder}: {error.strerror}; choose another folder with {ENVIRONMENT}"
            ) from error

    def _paths(self, key: Mapping[str, str]) -> tuple[Path, Path]:
        digest = sha256_bytes(json.dumps(dict(key), sort_keys=True).encode())[:32]
        return self.folder / f"{digest}.bin", self.folder / f"{digest}.json"
