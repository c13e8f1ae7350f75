"""What decoders have in common: finding outputs, thresholds on logits, grids."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from edgevision.detection.boxes import Array, Float32Array
from edgevision.detection.candidates import Candidates
from edgevision.detection.decoders import Outputs
from edgevision.errors import EngineError, UsageError

# output name → shape
Shapes: TypeAlias = Mapping[str, Sequence[int]]

# e^10 times an anchor is beyond any picture, and far from float32's end
MAX_EXPONENT = 10.0


def refuse(decoder: str, outputs: Outputs, expected: str) -> EngineError:
    """The error for outputs that are not what a decoder reads."""
    came = ", ".join(f"{name} {list(value.shape)}" for name, value in outputs.items()) or "nothing"
    return EngineError(
        f"decoder {decoder} expects {expected}; the network gives {came}. Name its family's decoder, or options"
    )


def named_maps(decoder: str, outputs: Outputs, names: Sequence[str], expected: str) -> list[Array]:
    """Outputs ``[B, C, H, W]`` by their names.

    Raises:
        EngineError: one is missing or has other dimensions.
    """
    maps = [outputs[name] for name in names if name in outputs]
    if len(maps) != len(names) or any(found.ndim != 4 for found in maps):
        raise refuse(decoder, outputs, expected)
    return maps


def rows_of(decoder: str, outputs: Outputs, count: int, least: int, expected: str, *, channels_first: bool) -> Array:
    """The one output with ``count`` predictions of at least ``least`` values, as ``[B, values, count]``.

    Both layouts are taken, ``[B, values, count]`` and ``[B, count, values]``; ``channels_first`` says which of them is
    meant where there are as many values as predictions.

    Raises:
        EngineError: no output, or more than one, has such a shape.
    """
    place = rows_output({name: value.shape for name, value in outputs.items()}, count, channels_first=channels_first)
    if place is None:
        raise refuse(decoder, outputs, expected)
    name, first = place
    rows = outputs[name]
    rows = rows if first else rows.transpose(0, 2, 1)
    if rows.shape[1] < least:
        raise refuse(decoder, outputs, expected)
    return rows


def rows_output(shapes: Shapes, count: int, *, channels_first: bool) -> tuple[str, bool] | None:
    """Name of the one output with ``count`` predictions, and whether its channels come first.

    None where no output, or more than one, has such a shape. See `rows_of`.
    """
    found = [(name, shape) for name, shape in shapes.items() if len(shape) == 3 and count in shape[1:]]
    if len(found) != 1:
        return None
    name, (_, first, second) = found[0]
    return name, second == count and (channels_first or first != count)


def class_rows(
    decoder: str,
    outputs: Outputs,
    count: int,
    others: int,
    num_classes: int | None,
    *,
    values: str,
    places: str,
    channels_first: bool = False,
) -> Array:
    """`rows_of` for predictions of ``others`` values and one more for each class: ``[B, others + classes, count]``.

    Args:
        decoder: its name, for messages.
        outputs: of the network.
        count: how many predictions there are.
        others: values of a prediction besides those of the classes.
        num_classes: where it is known, other outputs are refused.
        values: the values of a prediction in words, for messages.
        places: where predictions lie in words, for messages.
        channels_first: the usual layout.

    Raises:
        EngineError: the network gives something else.
    """
    width = values if num_classes is None else str(others + num_classes)
    shape = f"{width}, {count}" if channels_first else f"{count}, {width}"
    expected = f"one output [B, {shape}] ({places})"
    rows = rows_of(decoder, outputs, count, others + 1, expected, channels_first=channels_first)
    if num_classes not in (None, rows.shape[1] - others):
        raise refuse(decoder, outputs, expected)
    return rows


def at_strides(size: tuple[int, int], strides: Sequence[int]) -> str:
    """Where predictions lie, in words."""
    return f"strides {', '.join(map(str, strides))} of {size[0]}x{size[1]}"


def cells(size: tuple[int, int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """Rows and columns of the feature map of each stride, as padded convolutions make them.

    Raises:
        UsageError: a stride that is no whole number of pixels.
    """
    if not strides or not all(isinstance(stride, int) and stride >= 1 for stride in strides):
        raise UsageError(f"strides must be whole numbers of pixels, one for each level; got {list(strides)}")
    return [(-(-size[0] // stride), -(-size[1] // stride)) for stride in strides]


def grid(size: tuple[int, int], strides: Sequence[int]) -> tuple[Float32Array, Float32Array]:
    """Column and row ``[2, N]`` of every cell of all levels, row by row, and its stride ``[N]``; read only."""
    return _grid(tuple(cells(size, strides)), tuple(strides))


# a network sees one size: what it is told with every picture is made once
@lru_cache(maxsize=8)
def _grid(shapes: tuple[tuple[int, int], ...], strides: tuple[int, ...]) -> tuple[Float32Array, Float32Array]:
    corners, scales = [], []
    for (rows, columns), stride in zip(shapes, strides, strict=True):
        row, column = np.divmod(np.arange(rows * columns), columns)
        corners.append(np.stack([column, row]))
        scales.append(np.full(rows * columns, stride))
    made = np.concatenate(corners, axis=1).astype(np.float32), np.concatenate(scales).astype(np.float32)
    for array in made:
        array.setflags(write=False)
    return made


def logit(probability: float) -> float:
    """The logit whose sigmoid is ``probability``: a threshold on it needs no sigmoid of what it drops."""
    if probability <= 0.0:
        return -math.inf
    return math.inf if probability >= 1.0 else math.log(probability / (1.0 - probability))


def sigmoid(values: Array) -> Array:
    """``1 / (1 + e^−x)``; without overflow for the logits of any network."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(values, -80.0, 80.0))), np.float32)


def softmax(logits: Array, axis: int) -> Array:
    """Softmax over one axis."""
    powers = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis=axis, keepdims=True))


def expected_distances(logits: Array, reg_max: int) -> Array:
    """Means of the distributions over 0 to ``reg_max`` of four sides: ``[4 (reg_max + 1), P]`` → ``[4, P]``.

    Source: distribution focal loss, Li et al., arXiv 2006.04388, section 3.2.
    """
    shares = softmax(logits.reshape(4, reg_max + 1, -1), axis=1)
    return np.asarray((shares * np.arange(reg_max + 1, dtype=np.float32)[None, :, None]).sum(axis=1))


class Picked(NamedTuple):
    """What passed a threshold, its boxes still to be decoded.

    Attributes:
        places: of boxes with a score above it, ``[P]``.
        rows: for each candidate which of ``places`` is its box, ``[K]``, or all of them in order: a box with several
            classes is decoded once.
        labels: ``[K]``.
        scores: ``[K]``.
    """

    places: npt.NDArray[np.intp]
    rows: npt.NDArray[np.intp] | slice
    labels: Array
    scores: Array

    def at(self, corners: Array) -> Candidates:
        """Candidates with the boxes ``[P, 4]`` xyxy of their places."""
        return Candidates(corners[self.rows], self.scores, self.labels)

    def around(self, centers: Array, sides: Array) -> Candidates:
        """Candidates with the centres and sides ``[2, P]`` of their places."""
        half = sides / 2
        return self.at(np.concatenate([centers - half, centers + half]).T)


def pick(scores: Array, threshold: float, multi_label: bool) -> Picked:
    """What lies above ``threshold`` in ``scores`` ``[C, N]``: for each place its best class, or all that do."""
    # the best of each place first: few are above, and only those are looked at class by class
    best = scores.max(axis=0)
    places = np.flatnonzero(best > threshold)
    above = scores[:, places]
    if not multi_label:
        return Picked(places, slice(None), above.argmax(axis=0), best[places])
    labels, rows = np.nonzero(above > threshold)
    return Picked(places, rows, labels, above[labels, rows])


def objects(objectness: Array, classes: Array, threshold: float, multi_label: bool) -> Picked:
    """`pick` of ``objectness`` ``[N]`` times class probabilities ``[C, N]``."""
    # no class is above 1 by more than an integer engine's step
    near = np.flatnonzero(objectness * np.float32(1.01) > threshold)
    picked = pick(objectness[near] * classes[:, near], threshold, multi_label)
    return picked._replace(places=near[picked.places])
