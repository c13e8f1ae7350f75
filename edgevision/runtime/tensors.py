"""What a network takes and gives, by name, dtype and shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TensorSpec:
    """Name, numpy dtype name and shape of an input or output; ``None`` marks a free (batch) dimension."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TensorSpec:
        """Build from plain values."""
        return cls(str(values["name"]), str(values["dtype"]), tuple(values["shape"]))

    def __str__(self) -> str:
        shape = ", ".join("batch" if n is None else str(n) for n in self.shape)
        return f"{self.name}: {self.dtype}[{shape}]"
