"""``--decoder FILE.py:FUNCTION``: a detector's outputs read by a function of the user's own."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgevision.detection.decoders import Decoder


def add_decoder(parser: argparse.ArgumentParser) -> None:
    """The option of the verbs that run a detector."""
    parser.add_argument("--decoder", metavar="FILE.py:FUNCTION", help="for a detector: a function of yours that reads "
                        "its outputs. This RUNS the Python file; without it no bundle runs any code")  # fmt: skip


def open_decoder(named: str | None) -> Decoder | None:
    """Run a Python file and return its function; None where nothing is named.

    Only what the user names on the command line is run: neither the bundle's text nor its folder plays a part.

    Args:
        named: ``FILE.py:FUNCTION``.

    Raises:
        UsageError: no such form, file or function, or the file's code failed.
    """
    from edgevision.errors import UsageError

    if named is None:
        return None
    file, _, name = named.rpartition(":")
    path = Path(file)
    if path.suffix != ".py" or not name.isidentifier():
        raise UsageError(f"--decoder {named}: expected FILE.py:FUNCTION, the Python file that is to be run")
    if not path.is_file():
        raise UsageError(f"--decoder {named}: no such file: {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # somebody's own code may raise anything
        raise UsageError(f"--decoder {named}: running {path} failed: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f"--decoder {named}: {path} has no function {name}")
    found: Decoder = function
    return found
