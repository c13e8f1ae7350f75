"""SSD's multibox head (Liu et al., 2016, arXiv 1512.02325, section 2.2), with raw maps as outputs.

Per level ``i``: ``scores_{i}`` ``[B, A·(C + 1), h, w]`` logits, class 0 being the background, and ``boxes_{i}``
``[B, A·4, h, w]``: offsets of centre and size from the default box, divided by the variances. A is the level's number
of default boxes, the default box being the outer of both indices.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgevision.detection.boxes import Array, Float32Array
from edgevision.detection.candidates import Candidates
from edgevision.detection.decoders import Family, Outputs
from edgevision.detection.decoders.common import MAX_EXPONENT, logit, named_maps, pick, refuse, softmax
from edgevision.errors import UsageError
from edgevision.preprocess import Preprocess

# how offsets and log sizes are scaled
VARIANCES = (0.1, 0.2)


def decode(
    outputs: Outputs,
    size: tuple[int, int],
    *,
    confidence: float,
    multi_label: bool = False,
    priors: Sequence[Sequence[Sequence[float]]] = (),
    variances: Sequence[float] = VARIANCES,
    num_classes: int | None = None,
) -> list[Candidates]:
    """See the module and `edgevision.detection.decoders`.

    Args:
        priors: for each level width and height of its default boxes, as shares of the input's width and height.
        variances: factors of the offsets of centres and of sizes.
        num_classes: without the background; where it is known, other heads are refused.

    Raises:
        UsageError: no priors.
    """
    if not priors:
        raise UsageError(
            "decoder ssd needs priors: for each level [width, height] of its boxes, as shares of the input"
        )
    defaults = [np.asarray(level, np.float32) for level in priors]
    levels = _levels(outputs, defaults, num_classes)
    found = []
    for picture in range(len(levels[0][0])):
        parts = [
            _decode_level(scores[picture], boxes[picture], sides, size, variances, confidence, multi_label)
            for (scores, boxes), sides in zip(levels, defaults, strict=True)
        ]
        found.append(Candidates.join(parts))
    return found


def _levels(outputs: Outputs, defaults: Sequence[Float32Array], num_classes: int | None) -> list[tuple[Array, Array]]:
    """Scores ``[B, A, C + 1, h, w]`` and boxes ``[B, A, 4, h, w]`` of each level, their shapes checked."""
    each = "(1 + classes)" if num_classes is None else str(1 + num_classes)
    expected = ", ".join(
        f"scores_{level} [B, {len(sides)}·{each}, h, w] and boxes_{level} [B, {len(sides)}·4, h, w]"
        for level, sides in enumerate(defaults)
    )
    names = [f"{kind}_{level}" for kind in ("scores", "boxes") for level in range(len(defaults))]
    maps = named_maps("ssd", outputs, names, expected)
    values = 1 + num_classes if num_classes else maps[0].shape[1] // len(defaults[0])
    levels = []
    for scores, boxes, sides in zip(maps[: len(defaults)], maps[len(defaults) :], defaults, strict=True):
        count, cells = len(sides), scores.shape[2:]
        if scores.shape[1] != count * values or boxes.shape[1:] != (count * 4, *cells) or values < 2:
            raise refuse("ssd", outputs, expected)
        levels.append((scores.reshape(len(scores), count, values, *cells), boxes.reshape(len(boxes), count, 4, *cells)))
    return levels


def _decode_level(
    scores: Array,
    boxes: Array,
    sides: Array,
    size: tuple[int, int],
    variances: Sequence[float],
    confidence: float,
    multi_label: bool,
) -> Candidates:
    height, width = size
    rows, columns = scores.shape[2:]
    scores, boxes = scores.reshape(*scores.shape[:2], -1), boxes.reshape(*boxes.shape[:2], -1)
    # p/(1 − p) is at most p over the background's: what fails this cannot pass the threshold
    which, cell = np.nonzero(scores[:, 1:].max(axis=1) - scores[:, 0] > logit(confidence))
    picked = pick(softmax(scores[which, :, cell].T, axis=0)[1:], confidence, multi_label)
    which, cell = which[picked.places], cell[picked.places]
    offsets = boxes[which, :, cell].T
    row, column = np.divmod(cell, columns)
    centers = (np.stack([column, row]) + 0.5) / np.asarray([[columns], [rows]])
    shares = sides[which].T
    unit = np.asarray([[width], [height]], np.float32)
    centers = (centers + offsets[:2] * variances[0] * shares) * unit
    return picked.around(centers, np.exp(np.minimum(offsets[2:] * variances[1], MAX_EXPONENT)) * shares * unit)


def count_classes(
    outputs: Outputs,
    size: tuple[int, int],
    *,
    priors: Sequence[Sequence[Sequence[float]]] = (),
    **_: object,
) -> int:
    """Number of classes of such outputs, without the background."""
    return int(outputs["scores_0"].shape[1]) // len(priors[0]) - 1


FAMILY = Family(
    Preprocess((320, 320), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)), iou=0.55, count_classes=count_classes
)
