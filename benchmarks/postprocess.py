"""What it takes to make boxes of a YOLOv6 head's outputs: 8,400 candidates, 80 classes, confidence 0.25, one picture.

`Postprocess` beside a plain numpy version in the same run, in turns: that one takes the sigmoid of every score, decodes
every box, then suppresses class by class with one box against the others at a time. Both must find the same boxes.

python benchmarks/postprocess.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from edgevision.detection import Detections, Postprocess
from edgevision.preprocess import Preprocess
from provenance import save, show

ROUNDS = 300
SIZE = (640, 640)
STRIDES = (8, 16, 32)
CLASSES = 80
CONFIDENCE, IOU = 0.25, 0.5
PLACEMENT = Preprocess(SIZE, "letterbox").placement(1280, 720)


def street(objects: int, reg_max: int) -> dict[str, np.ndarray]:
    """Outputs of a picture of so many objects, each seen by a clump of six cells; background elsewhere."""
    rng = np.random.default_rng(0)
    outputs = {}
    for kind, channels in (("scores", CLASSES), ("boxes", 4 * (reg_max + 1) if reg_max else 4)):
        for stride in STRIDES:
            rows, columns = SIZE[0] // stride, SIZE[1] // stride
            values = rng.normal(-6.0, 0.7, (1, channels, rows, columns))
            if kind == "boxes":
                values = rng.normal(0.0, 1.0, values.shape) if reg_max else rng.uniform(1.0, 5.0, values.shape)
            outputs[f"{kind}_{stride}"] = values.astype(np.float32)
    for _ in range(objects):
        stride, label = int(rng.choice(STRIDES)), rng.integers(CLASSES)
        row, column = rng.integers(1, SIZE[0] // stride - 2, 2)
        for down, right in np.ndindex(2, 3):
            cell = (slice(None), row + down, column + right)
            outputs[f"scores_{stride}"][0][(label, *cell[1:])] = rng.normal(1.0, 0.5)
            # all cells of the clump see one object, to within a part of a stride
            sides = np.asarray([2 + right, 2 + down, 5 - right, 4 - down])
            outputs[f"boxes_{stride}"][0][cell] = _seen(sides, reg_max, rng)
    return outputs


def _seen(sides: np.ndarray, reg_max: int, rng: np.random.Generator) -> np.ndarray:
    """Distances, or logits that peak at them."""
    if not reg_max:
        return sides + rng.normal(0.0, 0.2, 4)
    steps = np.arange(reg_max + 1)
    return (-2.0 * np.abs(steps - sides[:, None]) + rng.normal(0.0, 0.3, (4, reg_max + 1))).ravel()


def plain(outputs: dict[str, np.ndarray], reg_max: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes in the picture's pixels, scores and labels, best first, step by step."""
    boxes, scores = [], []
    for stride in STRIDES:
        rows, columns = outputs[f"scores_{stride}"].shape[2:]
        sides = outputs[f"boxes_{stride}"][0].reshape(-1, rows * columns)
        if reg_max:
            powers = np.exp(sides.reshape(4, reg_max + 1, -1))
            steps = np.arange(reg_max + 1, dtype=np.float32)[None, :, None]
            sides = (powers / powers.sum(axis=1, keepdims=True) * steps).sum(axis=1)
        y, x = np.mgrid[:rows, :columns].reshape(2, -1) + np.float32(0.5)
        boxes.append(np.stack([x - sides[0], y - sides[1], x + sides[2], y + sides[3]], axis=1) * stride)
        scores.append(1 / (1 + np.exp(-outputs[f"scores_{stride}"][0].reshape(CLASSES, -1).T)))
    corners, chances = np.concatenate(boxes), np.concatenate(scores)
    labels, best = chances.argmax(axis=1), chances.max(axis=1)
    kept = np.concatenate([_suppress(corners, best, np.flatnonzero((labels == c) & (best > CONFIDENCE)))
                           for c in range(CLASSES)])  # fmt: skip
    kept = kept[np.argsort(-best[kept], kind="stable")]
    return np.asarray(PLACEMENT.to_original(corners[kept])), best[kept], labels[kept]


def _suppress(boxes: np.ndarray, scores: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    order, kept = chosen[np.argsort(-scores[chosen], kind="stable")], []
    while len(order):
        first, rest = order[0], order[1:]
        kept.append(first)
        left_top = np.maximum(boxes[first, :2], boxes[rest, :2])
        right_bottom = np.minimum(boxes[first, 2:], boxes[rest, 2:])
        shared = np.clip(right_bottom - left_top, 0, None).prod(axis=1)
        area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        order = rest[shared <= IOU * (area[first] + area[rest] - shared)]
    return np.asarray(kept, np.intp)


def same(found: Detections, reference: tuple[np.ndarray, np.ndarray, np.ndarray]) -> bool:
    """Whether both have the same boxes, but for the picture's borders and float32."""
    boxes, scores, labels = reference
    boxes = np.clip(boxes, 0, [PLACEMENT.width, PLACEMENT.height] * 2)
    inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    boxes, scores, labels = boxes[inside], scores[inside], labels[inside]
    return bool(
        np.array_equal(found.labels, labels)
        and np.allclose(found.scores, scores, atol=1e-5)
        and np.allclose(found.boxes, boxes, atol=0.05)
    )


def measure(objects: int, reg_max: int) -> dict[str, Any]:
    """One row: both versions in turns."""
    outputs = street(objects, reg_max)
    ours = Postprocess("yolov6", {"reg_max": reg_max}, confidence=CONFIDENCE, iou=IOU, max_detections=1000)
    found = ours(outputs, SIZE, [PLACEMENT])[0]
    assert same(found, plain(outputs, reg_max)), "the two versions find other boxes"
    mine, theirs = [], []
    for _ in range(ROUNDS):
        mine.append(_timed(lambda: ours(outputs, SIZE, [PLACEMENT])))
        theirs.append(_timed(lambda: plain(outputs, reg_max)))
    return {
        "decoder": "yolov6 with DFL" if reg_max else "yolov6",
        "candidates": sum((SIZE[0] // stride) * (SIZE[1] // stride) for stride in STRIDES),
        "classes": CLASSES,
        "above_confidence": len(ours.candidates(outputs, SIZE)[0]),
        "boxes": len(found),
        "ms": round(statistics.median(mine), 3),
        "least_ms": round(min(mine), 3),
        "plain_ms": round(statistics.median(theirs), 3),
        "plain_by_ours": round(statistics.median(b / a for a, b in zip(mine, theirs, strict=True)), 1),
        "runs": ROUNDS,
    }


def _timed(call: Callable[[], object]) -> float:
    begun = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - begun) / 1e6


def main() -> None:
    """Measure and write the CSV."""
    rows = [measure(objects, reg_max) for reg_max in (0, 16) for objects in (0, 12, 100)]
    show(rows)
    print(save("postprocess", rows, ("numpy",)))


if __name__ == "__main__":
    main()
