"""Two detectors' findings in the same pictures: which boxes have a partner, and how well partners agree. numpy alone.

Tensors say how far an engine's numbers are from FP32's; a user sees boxes. Quantized heads fail in two ways that a
cosine over millions of values hardly shows: every score falls to nothing, or boxes come out at other places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgevision.detection.boxes import greedy_pairs, iou_matrix
from edgevision.detection.detections import Detections
from edgevision.detection.evaluation import FoundBoxes
from edgevision.errors import UsageError

if TYPE_CHECKING:
    from edgevision.detection.postprocess import Postprocess
    from edgevision.preprocess import Preprocess

# partners overlap at least so much
PARTNER_IOU = 0.5
# a box just above the confidence on one side may lie just below it on the other: partners are looked for down to this
# share of it
_SLACK = 0.5
# score down to which the best one is looked for
_LOWEST = 0.001
# where the reference's best score is at least this, an engine whose best is below a tenth of it has lost its scores
_LEAST_BEST = 0.01
_LOST = 0.1

# what a quantized detector must at least keep, whatever its plan promises
_LEAST_MATCHED = 0.5
_LEAST_IOU = 0.6
# what a float engine must keep: other additions move a box by far less than a pixel, 11 bits of FP16 by about one
_FLOAT_LIMITS = {"fp32": (0.98, 0.98), "fp16": (0.95, 0.95)}
# pairs of boxes that may differ however few there are
_SPARE_BOXES = 2


@dataclass(frozen=True)
class DetectionLimits:
    """What is demanded of a comparison.

    Attributes:
        matched: least share of boxes with a partner, 0..1.
        mean_iou: least mean overlap of partners, 0..1.
    """

    matched: float
    mean_iou: float


@dataclass(frozen=True)
class DetectionComparison:
    """How far an engine's boxes are from a reference's.

    Attributes:
        confidence: boxes of at least this score are compared.
        expected: how many the reference found.
        actual: how many the engine found.
        matched: share of both sides' boxes that have a partner of their class on the other, 0..1; None where neither
            side found any.
        mean_iou: mean overlap of partners, 0..1; None without any.
        score_difference: mean absolute difference of partners' scores; None without any.
        best_expected: greatest score of the reference, below the confidence or not.
        best_actual: greatest score of the engine.
        survives: the engine still has scores; False where the reference found boxes and the engine none, or its best
            score is below a tenth of the reference's.
        passed: scores survive and the limits, if there are any, are met.
        limits: what was demanded.
    """

    confidence: float
    expected: int
    actual: int
    matched: float | None
    mean_iou: float | None
    score_difference: float | None
    best_expected: float
    best_actual: float
    survives: bool
    passed: bool
    limits: DetectionLimits | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        return asdict(self)


def partners(first: FoundBoxes, second: FoundBoxes, *, iou: float = PARTNER_IOU) -> list[tuple[int, int, float]]:
    """Pairs of boxes of one class that overlap by ``iou`` or more: index in each, and the overlap.

    Greedy: the surest of ``first`` chooses before the others, and takes what it overlaps most.
    """
    order = np.argsort(-np.asarray(first.scores), kind="stable")
    overlap = iou_matrix(np.asarray(first.boxes).reshape(-1, 4), np.asarray(second.boxes).reshape(-1, 4))
    same = np.asarray(first.labels).reshape(-1, 1) == np.asarray(second.labels).reshape(1, -1)
    pairs = [(int(order[row]), best) for row, best in greedy_pairs(np.where(same, overlap, -1.0)[order], iou)]
    return [(index, best, float(overlap[index, best])) for index, best in pairs]


def compare_detections(
    expected: Sequence[FoundBoxes],
    actual: Sequence[FoundBoxes],
    *,
    confidence: float,
    limits: DetectionLimits | None = None,
) -> DetectionComparison:
    """Compare what was found in each picture.

    A box of at least ``confidence`` on either side looks for a partner among the other side's boxes of at least half
    that confidence, so that a score that crosses the confidence by a hair is no lost box.

    Args:
        expected: the reference's boxes of each picture, down to half of ``confidence`` or lower.
        actual: the engine's, in the same order of pictures.
        confidence: score from which a box counts, above 0.
        limits: what must be kept.

    Raises:
        UsageError: the sequences differ in length.
    """
    if len(expected) != len(actual):
        raise UsageError(f"got detections of {len(expected)} and of {len(actual)} pictures to compare")
    count = {"expected": 0, "actual": 0, "found": 0, "confirmed": 0, "weak": 0}
    overlaps: list[float] = []
    differences: list[float] = []
    for reference, own in zip(expected, actual, strict=True):
        sure, sure_own = _above(reference, confidence), _above(own, confidence)
        weak, weak_own = _above(reference, _SLACK * confidence), _above(own, _SLACK * confidence)
        pairs = partners(sure, weak_own)
        overlaps += [overlap for _, _, overlap in pairs]
        differences += [abs(float(sure.scores[i]) - float(weak_own.scores[j])) for i, j, _ in pairs]
        count["expected"] += len(sure.scores)
        count["actual"] += len(sure_own.scores)
        count["found"] += len(pairs)
        count["confirmed"] += len(partners(sure_own, weak))
        count["weak"] += len(weak_own.scores)
    total = count["expected"] + count["actual"]
    matched = (count["found"] + count["confirmed"]) / total if total else None
    mean_iou = float(np.mean(overlaps)) if overlaps else None
    best_expected, best_actual = _best(expected), _best(actual)
    survives = not (count["expected"] and not count["weak"])
    survives &= best_expected < _LEAST_BEST or best_actual >= _LOST * best_expected
    return DetectionComparison(
        confidence=confidence,
        expected=count["expected"],
        actual=count["actual"],
        matched=matched,
        mean_iou=mean_iou,
        score_difference=float(np.mean(differences)) if differences else None,
        best_expected=best_expected,
        best_actual=best_actual,
        survives=survives,
        passed=survives and _within(matched, mean_iou, limits),
        limits=limits,
    )


def boxes_of(
    postprocess: Postprocess, preprocess: Preprocess, outputs: Mapping[str, npt.NDArray[Any]]
) -> list[Detections] | None:
    """What outputs ``[N, …]`` of golden inputs find, in pixels of the input, far below the confidence too.

    Pictures answered with NaN or infinity hold no box. None where the decoder is a function of somebody's own that
    was not passed.

    Raises:
        EngineError: outputs of another form than the decoder's.
    """
    from edgevision.detection.postprocess import is_function

    if postprocess.function is None and is_function(postprocess.decoder):
        return None
    low = postprocess.adjusted(confidence=min(_LOWEST, _SLACK * postprocess.confidence), multi_label=False)
    height, width = preprocess.size
    whole = replace(preprocess, resize="stretch", resize_to=None).placement(width, height)
    count = len(next(iter(outputs.values())))
    found = []
    for index in range(count):
        one = {name: value[index : index + 1] for name, value in outputs.items()}
        if all(np.isfinite(value).all() for value in one.values()):
            found += low(one, preprocess.size, [whole])
        else:
            found.append(Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)))
    return found


def confidence_of(postprocess: Postprocess) -> float:
    """Score from which a detector's boxes are compared: its own confidence, if that is above nothing."""
    return max(postprocess.confidence, 2 * _LOWEST)


def float_limits(precision: str, boxes: int) -> DetectionLimits | None:
    """What a float engine must keep of ``boxes`` boxes (both sides' together); None where there are none."""
    if not boxes:
        return None
    matched, mean_iou = _FLOAT_LIMITS.get(precision, _FLOAT_LIMITS["fp16"])
    return DetectionLimits(max(0.0, matched - _SPARE_BOXES / boxes), mean_iou)


def quantized_limits(kept: DetectionComparison) -> DetectionLimits | None:
    """What an INT8 engine must keep: what the plan's own reference keeps of FP32's boxes, less as much again.

    The engine rounds otherwise than the plan's reference at every layer, and may lose as much by that as the plan
    lost by quantization. None where there is no box to compare.
    """
    boxes = kept.expected + kept.actual
    if kept.matched is None or not boxes:
        return None
    matched = 1.0 - 2.0 * (1.0 - kept.matched) - _SPARE_BOXES / boxes
    mean_iou = 1.0 - 2.0 * (1.0 - (kept.mean_iou or 0.0)) - 0.02
    return DetectionLimits(max(_LEAST_MATCHED, matched), max(_LEAST_IOU, mean_iou))


def _within(matched: float | None, mean_iou: float | None, limits: DetectionLimits | None) -> bool:
    if limits is None or matched is None:
        return True
    return matched >= limits.matched and (mean_iou or 0.0) >= limits.mean_iou


def _above(found: FoundBoxes, score: float) -> Detections:
    # false for NaN too
    kept = np.asarray(found.scores) >= score
    return Detections(np.asarray(found.boxes)[kept], np.asarray(found.scores)[kept], np.asarray(found.labels)[kept])


def _best(found: Sequence[FoundBoxes]) -> float:
    scores = np.concatenate([np.asarray(picture.scores).reshape(-1) for picture in found]) if found else np.zeros(0)
    scores = scores[np.isfinite(scores)]
    return float(scores.max()) if scores.size else 0.0
