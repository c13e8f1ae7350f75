"""FastestDet (X. Ma, 2022; github.com/dog-qiuqiu/FastestDet): one output ``[B, 5 + C, rows, columns]``.

Per cell objectness, offset x and y of the centre through tanh, width and height through the sigmoid as shares of the
input, and class probabilities. Score: ``objectness^0.6 · class^0.4``.
"""

from __future__ import annotations

import numpy as np

from edgevision.detection.boxes import Array
from edgevision.detection.candidates import Candidates
from edgevision.detection.decoders import Family, Outputs
from edgevision.detection.decoders.common import Shapes, pick, refuse, sigmoid
from edgevision.preprocess import Preprocess

_EXPECTED = "one output [B, 5 + classes, rows, columns]"


def decode(
    outputs: Outputs,
    size: tuple[int, int],
    *,
    confidence: float,
    multi_label: bool = False,
    num_classes: int | None = None,
) -> list[Candidates]:
    """See the module and `edgevision.detection.decoders`.

    Args:
        num_classes: where it is known, other outputs are refused.
    """
    return [_decode_picture(values, size, confidence, multi_label) for values in _map(outputs, num_classes)]


def _map(outputs: Outputs, num_classes: int | None) -> Array:
    found = map_names({name: value.shape for name, value in outputs.items()})
    if len(found) != 1 or num_classes not in (None, outputs[found[0]].shape[1] - 5):
        raise refuse("fastestdet", outputs, _EXPECTED)
    return outputs[found[0]]


def map_names(shapes: Shapes) -> list[str]:
    """Outputs that may be the one this family has."""
    return [name for name, shape in shapes.items() if len(shape) == 4 and shape[1] > 5]


def _decode_picture(values: Array, size: tuple[int, int], confidence: float, multi_label: bool) -> Candidates:
    height, width = size
    _, rows, columns = values.shape
    values = values.reshape(len(values), -1)
    # integer engines may give probabilities a step below 0, which have no root
    objectness = np.maximum(values[0], 0) ** np.float32(0.6)
    # a score is never above objectness^0.6, as no class is above 1 by more than such a step
    near = np.flatnonzero(objectness * np.float32(1.01) > confidence)
    scores = objectness[near] * np.maximum(values[5:, near], 0) ** np.float32(0.4)
    picked = pick(scores, confidence, multi_label)
    places = near[picked.places]
    row, column = np.divmod(places, columns)
    cells = np.asarray([[columns], [rows]], np.float32)
    unit = np.asarray([[width], [height]], np.float32)
    centers = (np.stack([column, row]) + np.tanh(values[1:3, places])) / cells * unit
    return picked.around(centers, sigmoid(values[3:5, places]) * unit)


def count_classes(outputs: Outputs, size: tuple[int, int], **_: object) -> int:
    """Number of classes of such outputs."""
    return int(_map(outputs, None).shape[1]) - 5


FAMILY = Family(Preprocess((352, 352), color="BGR"), confidence=0.3, iou=0.45, count_classes=count_classes)
