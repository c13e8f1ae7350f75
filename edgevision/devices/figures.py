"""`Figure`: a number with its unit and the document it is from. The registry holds nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        value: a number, or words (``"6.2"``).
        unit: of the value; empty for words and counts.
        source: the document and, where it has them, the section or page.
        verified: the figure was looked up, in the source or in a public text that gives it, or follows from ones that
            were. Otherwise it is what the source is remembered to say: look it up before much depends on it.
    """

    value: float | int | str
    unit: str
    source: str
    verified: bool = False

    @property
    def number(self) -> float:
        """The value as a number. Raises `ValueError` for words."""
        return float(self.value)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        return dict(vars(self))

    def __str__(self) -> str:
        shown = self.value if isinstance(self.value, str) else f"{self.value:g}"
        return f"{shown} {self.unit}".strip()
