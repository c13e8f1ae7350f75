"""MobileFaceNet (S. Chen et al., CCBR 2018): 128 numbers a face, judged on pairs of pictures of one or two people."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from edgevision.data.datasets import FileDataset
from edgevision.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from other_networks.boxes import Array
from other_networks.case import Case, Figure, Outputs

PREPROCESS = Preprocess((112, 112), mean=IMAGENET_MEAN, std=IMAGENET_STD)
CALIBRATION_PEOPLE = 10


def auc(scores: Array, same: Array) -> float:
    """Area under the ROC curve: how often a pair of one person scores above a pair of two, ties counted half.

    Args:
        scores: ``[N]`` similarity of every pair.
        same: ``[N]`` bool: whether it shows one person; both kinds must occur.
    """
    order = np.sort(scores)
    # mean rank of equal scores, from 1
    ranks = (np.searchsorted(order, scores, "left") + np.searchsorted(order, scores, "right") + 1) / 2
    positive = int(same.sum())
    above = ranks[same].sum() - positive * (positive + 1) / 2
    return float(above / (positive * (len(scores) - positive)))


def best_threshold(scores: Array, same: Array) -> tuple[float, float]:
    """The similarity from which on to say "the same person", and the share of right answers that gives, 0..1."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    # the first k pairs called the same: those of them that are, and those behind that are not
    right = np.concatenate([[0], np.cumsum(same[order])]) + np.concatenate([np.cumsum(~same[order][::-1])[::-1], [0]])
    possible = np.concatenate([[True], ranked[:-1] > ranked[1:], [True]])  # equal scores cannot be told apart
    best = int(np.where(possible, right, -1).argmax())
    threshold = ranked[best - 1] if best else np.inf
    return float(threshold), float(right[best] / len(scores))


def similarities(embeddings: Array, pairs: Array) -> Array:
    """Cosine of the two embeddings ``[N, D]`` of every pair ``[P, 2]``: ``[P]``."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    return np.asarray((unit[pairs[:, 0]] * unit[pairs[:, 1]]).sum(axis=1))


def judge_pairs(where: str, fp32: Array, int8: Array, pairs: Array, same: Array) -> list[Figure]:
    """AUC and accuracy at the best threshold; agreement: pairs answered alike at FP32's threshold."""
    before, after = similarities(fp32, pairs), similarities(int8, pairs)
    threshold, accuracy = best_threshold(before, same)
    alike = float(np.mean((before >= threshold) == (after >= threshold)))
    of = "pairs at FP32's best threshold"
    return [
        Figure(where, len(pairs), "AUC", auc(before, same), auc(after, same), alike, of),
        Figure(
            where,
            len(pairs),
            "best-threshold accuracy (%)",
            100 * accuracy,
            100 * best_threshold(after, same)[1],
            alike,
            of,
        ),
    ]


def open_mobilefacenet(data: Path) -> Case:
    """Calibrated on ten people, judged on the pairs of the others and, beside the published figure, on all pairs."""
    folder = data / "faces-orl"
    with (folder / "pairs.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    names = sorted({row[side] for row in rows for side in "ab"})
    index = {name: number for number, name in enumerate(names)}
    pairs = np.asarray([[index[row["a"]], index[row["b"]]] for row in rows])
    same = np.asarray([row["same"] == "1" for row in rows])
    people = sorted({name.partition("/")[0] for name in names})
    # people s01, s02 ... are in no order that matters; calibration sees pictures that no pair holds, too
    seen = set(people[:CALIBRATION_PEOPLE])
    unseen = np.asarray([not {row[side].partition("/")[0] for side in "ab"} & seen for row in rows])
    calibration = [str(path) for person in sorted(seen) for path in sorted((folder / person).glob("*.pgm"))]

    def judge(fp32: Outputs, int8: Outputs) -> list[Figure]:
        before, after = (next(iter(outputs.values())) for outputs in (fp32, int8))
        others = f"faces-orl, pairs of the {len(people) - len(seen)} people not calibrated on"
        return [
            *judge_pairs(others, before, after, pairs[unseen], same[unseen]),
            *judge_pairs("faces-orl/pairs", before, after, pairs, same),
        ]

    return Case(
        name="mobilefacenet_112",
        source=data / "weights" / "mobilefacenet_112.onnx",
        preprocess=PREPROCESS,
        calibration=FileDataset(f"images:{folder}", calibration),
        calibrated_on=f"faces-orl, {len(seen)} people",
        judged=FileDataset(f"images:{folder}", [str(folder / name) for name in names]),
        judge=judge,
    )
