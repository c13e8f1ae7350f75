"""ncnn's ``.param`` text: one line a layer.

::

    7767517                                             magic
    3 3                                                 layers, blobs
    Input            in0       0 1 in0                  type, name, #bottoms, #tops, bottoms…, tops…, key=value…
    Convolution      conv_0    1 1 in0 1 0=24 1=3 …
    HardSwish        act_0     1 1 1 out0 0=0.1666667 1=0.5

Keys are integers; an array of n values has key ``-23300 - k`` and the text ``n,v,v,…``. Values are kept as text, so
that what nobody touches comes out as it went in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from edgevision.errors import ModelError

MAGIC = "7767517"
_ARRAY = -23300


@dataclass
class Layer:
    """One line of a ``.param`` file.

    Attributes:
        type: e.g. ``Convolution``.
        name: unique within the model.
        bottoms: names of the blobs it reads.
        tops: names of the blobs it makes.
        params: key → value as text, in the file's order.
    """

    type: str
    name: str
    bottoms: list[str]
    tops: list[str]
    params: dict[int, str] = field(default_factory=dict)

    def integer(self, key: int, default: int = 0) -> int:
        """Value of ``key`` as an integer."""
        return int(self.number(key, default))

    def number(self, key: int, default: float = 0.0) -> float:
        """Value of ``key`` as a number. Raises `ModelError` where it is none."""
        text = self.params.get(key)
        if text is None:
            return default
        try:
            return float(text)
        except ValueError:
            raise ModelError(f"layer {self.name} ({self.type}): parameter {key}={text!r} is not a number") from None

    def array(self, key: int) -> list[float]:
        """Values of the array ``key``; empty where there is none. Raises `ModelError` where it is malformed."""
        text = self.params.get(_ARRAY - key)
        if text is None:
            return []
        try:
            count, *values = text.split(",")
            numbers = [float(value) for value in values]
        except ValueError:
            raise ModelError(f"layer {self.name} ({self.type}): array {key}={text!r} holds no numbers") from None
        if count != str(len(numbers)):
            raise ModelError(f"layer {self.name} ({self.type}): array {key} announces {count}, has {len(numbers)}")
        return numbers

    def set(self, key: int, value: float) -> None:
        """Set ``key``; an `int` is written without a point."""
        self.params[key] = repr(value)

    def set_array(self, key: int, values: Sequence[float]) -> None:
        """Set the array ``key``."""
        self.params[_ARRAY - key] = ",".join([str(len(values)), *(repr(value) for value in values)])

    def line(self) -> str:
        """The layer as ncnn's tools write it."""
        values = [f"{key}={value}" for key, value in self.params.items()]
        counts = f"{len(self.bottoms)} {len(self.tops)}"
        return " ".join([f"{self.type:<24} {self.name:<24} {counts}", *self.bottoms, *self.tops, *values])


def parse_param(text: str) -> list[Layer]:
    """Read a ``.param`` file.

    Raises:
        ModelError: it is none; names the line.
    """
    lines = text.splitlines()
    if not lines or lines[0].strip() != MAGIC:
        raise ModelError(f"not an ncnn .param file: the first line is not {MAGIC}")
    try:
        announced, _blobs = (int(word) for word in lines[1].split())
    except (IndexError, ValueError):
        raise ModelError("ncnn .param, line 2: expected the numbers of layers and blobs") from None
    layers = [_parse_line(line, number) for number, line in enumerate(lines[2:], start=3) if line.strip()]
    if len(layers) != announced:
        raise ModelError(f"ncnn .param announces {announced} layers and has {len(layers)}; the file is cut short")
    return layers


def format_param(layers: Iterable[Layer]) -> str:
    """Write a ``.param`` file, the same text for the same layers."""
    layers = list(layers)
    blobs = {blob for layer in layers for blob in layer.tops}
    lines = [MAGIC, f"{len(layers)} {len(blobs)}", *(layer.line() for layer in layers)]
    return "\n".join(lines) + "\n"


def _parse_line(line: str, number: int) -> Layer:
    words = line.split()
    try:
        bottoms, tops = int(words[2]), int(words[3])
        if bottoms < 0 or tops < 0 or len(words) < 4 + bottoms + tops:
            raise ValueError
        params = {}
        for word in words[4 + bottoms + tops :]:
            key, _, value = word.partition("=")
            params[int(key)] = value
            if not value:
                raise ValueError
    except (IndexError, ValueError):
        raise ModelError(
            f"ncnn .param, line {number}: expected 'type name #bottoms #tops blobs… key=value…', got {line!r}"
        ) from None
    return Layer(words[0], words[1], words[4 : 4 + bottoms], words[4 + bottoms : 4 + bottoms + tops], params)
