"""Layers of an ncnn ``.param`` file: it has no shapes, so they are followed from the input on.

Parameter numbers are those of ncnn's documentation, "operators".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edgevision.devices.layers import LayerCost, elements, kind_of
from edgevision.errors import ModelError

Shape = tuple[int, ...]

# these change no shape and are fused or free
_FREE = {"Split", "ReLU", "Clip", "Dropout", "Noop", "Quantize", "Dequantize", "Requantize", "Input", "MemoryData"}

# padding that keeps the size over the stride
_SAME = {-233, -234}


@dataclass(frozen=True)
class Entry:
    """One line of the file."""

    kind: str
    name: str
    inputs: list[str]
    outputs: list[str]
    numbers: dict[int, float] = field(default_factory=dict)
    arrays: dict[int, list[float]] = field(default_factory=dict)

    def whole(self, key: int, default: int = 0) -> int:
        """A parameter as a whole number."""
        return int(self.numbers.get(key, default))


def ncnn_layers(text: str, input_shape: Sequence[int], wide: str) -> list[LayerCost]:
    """Layers of a ``.param`` file.

    Args:
        text: the file.
        input_shape: of a picture, ``[C, H, W]``.
        wide: precision of layers that are not INT8.

    Raises:
        ModelError: damaged, or a shape cannot be followed.
    """
    shapes: dict[str, Shape] = {}
    layers: list[LayerCost] = []
    for entry in parse(text):
        missing = [name for name in entry.inputs if name not in shapes]
        if missing:
            raise ModelError(f"ncnn layer {entry.name}: nothing makes its input {missing[0]!r}")
        given = [shapes[name] for name in entry.inputs]
        made = _shapes(entry, given, tuple(input_shape))
        shapes.update(zip(entry.outputs, made, strict=True))
        if entry.kind not in _FREE:
            layers.append(_cost(entry, given, made, wide))
    return layers


def parse(text: str) -> list[Entry]:
    """Lines of a ``.param`` file.

    Raises:
        ModelError: not such a file.
    """
    lines = text.split("\n")
    if not lines or lines[0].strip() != "7767517":
        raise ModelError("not an ncnn .param file: it begins without the magic number 7767517")
    entries = []
    for line in lines[2:]:
        words = line.split()
        if not words:
            continue
        try:
            count_in, count_out = int(words[2]), int(words[3])
            blobs = words[4 : 4 + count_in + count_out]
            if len(blobs) != count_in + count_out:
                raise ValueError("a blob is missing")
            entry = Entry(words[0], words[1], blobs[:count_in], blobs[count_in:])
            for word in words[4 + count_in + count_out :]:
                _parameter(entry, word)
        except (ValueError, IndexError) as error:
            raise ModelError(f"damaged line in an ncnn .param file: {line[:80]!r} ({error})") from error
        entries.append(entry)
    return entries


def _parameter(entry: Entry, word: str) -> None:
    key, _, value = word.partition("=")
    number = int(key)
    if number <= -23300:
        entry.arrays[-23300 - number] = [float(part) for part in value.split(",")[1:]]
    elif "," in value:
        entry.arrays[number] = [float(part) for part in value.split(",")]
    else:
        try:
            entry.numbers[number] = float(value)
        except ValueError:
            return  # words, such as the expression of a reshape


def _shapes(entry: Entry, given: list[Shape], picture: Shape) -> list[Shape]:
    if entry.kind in {"Input", "MemoryData"}:
        own = tuple(size for size in (entry.whole(2), entry.whole(1), entry.whole(0)) if size > 0)
        return [own or picture]
    if entry.kind in {"Slice", "Split"}:
        return _slices(entry, given[0]) if entry.kind == "Slice" else [given[0]] * len(entry.outputs)
    if len(entry.outputs) != 1:
        raise ModelError(f"ncnn layer {entry.name}: shapes of {entry.kind} with several outputs are not known")
    rule = _RULES.get(entry.kind)
    # what has no rule of its own works on each element, and the greatest input is that which is not broadcast
    return [rule(entry, given) if rule else max(given, key=elements)]


def _cost(entry: Entry, given: list[Shape], made: list[Shape], wide: str) -> LayerCost:
    inputs, outputs = sum(elements(shape) for shape in given), sum(elements(shape) for shape in made)
    if entry.kind in {"Convolution", "ConvolutionDepthWise"}:
        weights, groups = entry.whole(6), entry.whole(7, 1)
        kind = kind_of(groups, entry.whole(0))
        macs = weights * math.prod(made[0][1:])
        precision = "int8" if entry.whole(8) else wide
    elif entry.kind in {"Deconvolution", "DeconvolutionDepthWise"}:
        weights, kind, precision = entry.whole(6), "convolution", wide
        macs = weights * math.prod(given[0][1:])
    elif entry.kind in {"InnerProduct", "Gemm", "MatMul"}:
        weights = entry.whole(2) if entry.kind == "InnerProduct" else 0
        kind, precision = "dense", "int8" if entry.kind == "InnerProduct" and entry.whole(8) else wide
        rows = outputs // max(1, entry.whole(0)) if entry.kind == "InnerProduct" else 1
        macs = weights * rows if weights else elements(made[0]) * given[0][-1]
    else:
        return LayerCost(entry.name, "other", 0, 0, inputs, outputs, wide)
    return LayerCost(entry.name, kind, macs, weights, inputs, outputs, precision)


def _convolution(entry: Entry, given: list[Shape]) -> Shape:
    _, height, width = given[0]
    left, top = entry.whole(4), entry.whole(14, entry.whole(4))
    kernel = (entry.whole(11, entry.whole(1)), entry.whole(1))
    dilation = (entry.whole(12, entry.whole(2, 1)), entry.whole(2, 1))
    stride = (entry.whole(13, entry.whole(3, 1)), entry.whole(3, 1))
    pads = ((top, entry.whole(16, top)), (left, entry.whole(15, left)))
    sizes = [
        _windows(size, kernel[axis], stride[axis], dilation[axis], pads[axis])
        for axis, size in enumerate((height, width))
    ]
    return (entry.whole(0), *sizes)


def _windows(size: int, kernel: int, stride: int, dilation: int, pads: tuple[int, int], *, ceil: bool = False) -> int:
    if pads[0] in _SAME:
        return -(-size // stride)
    room = size + sum(pads) - (dilation * (kernel - 1) + 1)
    return (-(-room // stride) if ceil else room // stride) + 1


def _deconvolution(entry: Entry, given: list[Shape]) -> Shape:
    _, height, width = given[0]
    kernel = (entry.whole(11, entry.whole(1)), entry.whole(1))
    stride = (entry.whole(13, entry.whole(3, 1)), entry.whole(3, 1))
    pad = (entry.whole(14, entry.whole(4)), entry.whole(4))
    extra = (entry.whole(19, entry.whole(18)), entry.whole(18))
    sizes = [
        (size - 1) * stride[axis] + kernel[axis] - 2 * pad[axis] + extra[axis]
        for axis, size in enumerate((height, width))
    ]
    return (entry.whole(0), *sizes)


def _pooling(entry: Entry, given: list[Shape]) -> Shape:
    channels, height, width = given[0]
    if entry.whole(4):
        return (channels,)
    if entry.whole(7):
        return (channels, entry.whole(18, entry.whole(8)), entry.whole(8))
    kernel = (entry.whole(11, entry.whole(1)), entry.whole(1))
    stride = (entry.whole(12, entry.whole(2, 1)), entry.whole(2, 1))
    left, top = entry.whole(3), entry.whole(13, entry.whole(3))
    pads = ((top, entry.whole(15, top)), (left, entry.whole(14, left)))
    if entry.whole(5) in {2, 3}:
        return (channels, -(-height // stride[0]), -(-width // stride[1]))
    ceil = entry.whole(5) == 0
    sizes = [
        _windows(size, kernel[axis], stride[axis], 1, pads[axis], ceil=ceil)
        for axis, size in enumerate((height, width))
    ]
    return (channels, *sizes)


def _concat(entry: Entry, given: list[Shape]) -> Shape:
    axis = entry.whole(0) % len(given[0])
    joined = sum(shape[axis] for shape in given)
    return (*given[0][:axis], joined, *given[0][axis + 1 :])


def _slices(entry: Entry, given: Shape) -> list[Shape]:
    axis = entry.whole(1) % len(given)
    count = len(entry.outputs)
    if (indices := [int(index) for index in entry.arrays.get(2, [])]) and len(indices) == count - 1:
        bounds = [0, *(index % given[axis] for index in indices), given[axis]]
        sizes = [last - first for first, last in zip(bounds, bounds[1:], strict=False)]  # noqa: RUF007 - one is enough
    else:
        wanted = [int(size) for size in entry.arrays.get(0, [])] or [-233] * count
        sizes, left = [], given[axis]
        for position, size in enumerate(wanted):
            # -233: an equal part of what is left
            taken = left // (count - position) if size == -233 else size
            sizes.append(taken)
            left -= taken
    return [(*given[:axis], size, *given[axis + 1 :]) for size in sizes]


def _interp(entry: Entry, given: list[Shape]) -> Shape:
    if len(given) > 1:
        return (given[0][0], *given[1][-2:])
    channels, height, width = given[0]
    return (
        channels,
        entry.whole(3) or round(height * entry.numbers.get(1, 1.0)),
        entry.whole(4) or round(width * entry.numbers.get(2, 1.0)),
    )


def _padding(entry: Entry, given: list[Shape]) -> Shape:
    *outer, height, width = given[0]
    return (*outer, height + entry.whole(0) + entry.whole(1), width + entry.whole(2) + entry.whole(3))


def _reshape(entry: Entry, given: list[Shape]) -> Shape:
    wanted = [entry.whole(key, -233) for key in (2, 11, 1, 0)]
    sizes = [size for size in wanted if size != -233]
    source = given[0]
    sizes = [source[index] if size == 0 and index < len(source) else size for index, size in enumerate(sizes)]
    known = math.prod(size for size in sizes if size > 0)
    return tuple(elements(source) // known if size < 0 else size for size in sizes)


# order of ncnn's Permute for three dimensions, as indices of (c, h, w)
_ORDERS = {0: (0, 1, 2), 1: (0, 2, 1), 2: (1, 0, 2), 3: (1, 2, 0), 4: (2, 0, 1), 5: (2, 1, 0)}


def _permute(entry: Entry, given: list[Shape]) -> Shape:
    order = entry.whole(0)
    if len(given[0]) == 2:
        return given[0] if order == 0 else given[0][::-1]
    return tuple(given[0][index] for index in _ORDERS[order])


def _inner_product(entry: Entry, given: list[Shape]) -> Shape:
    # rows of a matrix are multiplied each for itself
    if len(given[0]) == 2:
        return (given[0][0], entry.whole(0))
    return (entry.whole(0),)


def _flatten(entry: Entry, given: list[Shape]) -> Shape:
    return (elements(given[0]),)


def _reduction(entry: Entry, given: list[Shape]) -> Shape:
    shape = given[0]
    axes = {int(axis) % len(shape) for axis in entry.arrays.get(3, [])}
    if entry.whole(1, 1) and not axes:
        axes = set(range(len(shape)))
    kept = [1 if index in axes else size for index, size in enumerate(shape)]
    if not entry.whole(4):
        kept = [size for index, size in enumerate(kept) if index not in axes]
    return tuple(kept) or (1,)


_RULES: dict[str, Callable[[Entry, list[Shape]], Shape]] = {
    "Convolution": _convolution,
    "ConvolutionDepthWise": _convolution,
    "Deconvolution": _deconvolution,
    "DeconvolutionDepthWise": _deconvolution,
    "Pooling": _pooling,
    "Concat": _concat,
    "Interp": _interp,
    "Padding": _padding,
    "Reshape": _reshape,
    "Permute": _permute,
    "InnerProduct": _inner_product,
    "Flatten": _flatten,
    "Reduction": _reduction,
}
