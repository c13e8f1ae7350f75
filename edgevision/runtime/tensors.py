"""What a network takes and gives, by name, dtype and shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

DTYPES = (
    "float32",
    "float16",
    "float64",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "bool",
)


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
        """Build from plain values.

        Raises:
            ValueError: a dtype that tensors do not have, or a dimension that is neither None nor 1 or more.
        """
        dtype, shape = str(values["dtype"]), tuple(values["shape"])
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r} of tensor {values['name']!r}; expected one of {', '.join(DTYPES)}")
        if any(size is not None and (type(size) is not int or size < 1) for size in shape):
            raise ValueError(f"shape {list(shape)} of tensor {values['name']!r}; expected sizes of 1 or more, or null")
        return cls(str(values["name"]), dtype, shape)

    def __str__(self) -> str:
        shape = ", ".join("batch" if n is None else str(n) for n in self.shape)
        return f"{self.name}: {self.dtype}[{shape}]"
