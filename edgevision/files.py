"""Writing so that nothing is ever half-written, and hashing what was written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgevision.errors import OutputError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary file beside ``path``; rename it onto ``path`` when the block ends without an error.

    Whatever goes wrong (an exception, Ctrl-C, a full disk), ``path`` is either as it was or complete.

    Raises:
        OutputError: the folder cannot be made or written, or the disk is full.
    """
    path = Path(path)
    temporary = _temporary_beside(path)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())  # a full disk may speak up only now
        temporary.replace(path)
    except OSError as error:
        if isinstance(error, OutputError) or not _is_output_problem(error):
            raise
        raise _cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def ensure_writable(folder: str | Path) -> Path:
    """Make ``folder`` where it is missing and prove that files can be written in it, before long work begins.

    Raises:
        OutputError: it cannot be made or written.
    """
    folder = Path(folder)
    _temporary_beside(folder / "probe", shown=folder).unlink()
    return folder


def _temporary_beside(path: Path, shown: Path | None = None) -> Path:
    """A new empty file in the folder of ``path``; an error names ``shown``, by default ``path``."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # not mkstemp: its files are private, and results are to be as readable as the user's umask allows
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise _cannot_write(shown or path, error) from error
    return temporary


def _cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write {path}: {error.strerror}; choose another folder with -o")


def _is_output_problem(error: OSError) -> bool:
    return error.errno in {
        errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST,
        errno.EFBIG, errno.EIO, errno.EISDIR, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL,
    }  # fmt: skip


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically. Raises `OutputError` where that is not possible."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8 atomically. Raises `OutputError` where that is not possible."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON atomically. Raises `OutputError` where that is not possible."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def sha256_bytes(data: bytes | memoryview) -> str:
    """Hexadecimal SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
