"""How verbs print: plain text for people, one JSON document for machines."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgevision.errors import UsageError


def print_json(value: Any) -> None:
    """One JSON document on standard output; NaN and infinity have no place in JSON."""
    print(json.dumps(value, indent=2, allow_nan=False))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they must be; numbers to the right, words to the left."""
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
    numeric = [bool(rows) and all(_is_number(str(row[i])) for row in rows) for i in range(len(header))]
    for row in [header, *rows]:
        cells = [
            str(cell).rjust(width) if right else str(cell).ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        print("  ".join(cells).rstrip())


def _is_number(cell: str) -> bool:
    return not cell or cell.lstrip("-")[:1].isdigit()


def names(text: str) -> list[str]:
    """``"a,b"`` → ``["a", "b"]``."""
    return [part.strip() for part in text.split(",") if part.strip()]


def counts(text: str) -> list[int]:
    """``"1,2"`` → ``[1, 2]``; for argparse's ``type``."""
    try:
        return [int(part) for part in names(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers such as 1 or 1,2; got {text!r}") from None


def image_size(text: str) -> tuple[int, int]:
    """``"224"`` or ``"240x320"`` (height × width) → ``(height, width)``; for argparse's ``type``."""
    try:
        parts = [int(part) for part in text.lower().replace("×", "x").split("x")]
    except ValueError:
        parts = []
    if len(parts) not in {1, 2} or min(parts) < 1:
        raise argparse.ArgumentTypeError(f"expected SIZE or HEIGHTxWIDTH in pixels; got {text!r}")
    return parts[0], parts[-1]


def read_lines(path: str) -> list[str]:
    """Class names from a text file, one a line.

    Raises:
        UsageError: the file cannot be read or is empty.
    """
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as class names: {error}") from error
    if not lines:
        raise UsageError(f"{path}: holds no class names")
    return lines
