"""UltraFace RFB-320 (Linzaer, 2019; Ultra-Light-Fast-Generic-Face-Detector-1MB), judged on pictures of one face."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgevision.data.datasets import FileDataset
from edgevision.detection import Detections, Postprocess
from edgevision.detection.boxes import iou_matrix
from edgevision.images import read_image
from edgevision.preprocess import Preprocess
from other_networks.boxes import Array
from other_networks.case import Case, Figure, Outputs

PREPROCESS = Preprocess((240, 320), "letterbox", scale=1.0, mean=(127.0,) * 3, std=(128.0,) * 3)
# the project's own settings
POSTPROCESS = Postprocess("ultraface", confidence=0.7, iou=0.3)
CLOSE = 0.9
CALIBRATION_PEOPLE = 5


def detect(outputs: Outputs, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
    """Faces in pixels of every picture; ``sizes``: width and height of each."""
    return POSTPROCESS(outputs, PREPROCESS.size, [PREPROCESS.placement(*size) for size in sizes])


def best_overlap(first: Detections, second: Detections) -> float:
    """IoU of the two best faces; 0 where one side found none, 1 where neither did."""
    if not len(first) or not len(second):
        return float(len(first) == len(second))
    return float(iou_matrix(first.boxes[:1], second.boxes[:1])[0, 0])


def judge_faces(where: str, fp32: list[Detections], int8: list[Detections], expected: Array) -> list[Figure]:
    """Pictures with as many faces found as there are, and how far INT8's boxes lie on FP32's."""
    before, after = (100 * float(np.mean([len(found) for found in side] == expected)) for side in (fp32, int8))
    overlaps = [best_overlap(*pair) for pair in zip(fp32, int8, strict=True)]
    mean, close = float(np.mean(overlaps)), float(np.mean(np.asarray(overlaps) >= CLOSE))
    least, count = min(overlaps), len(expected)
    return [
        Figure(where, count, "right number of faces (%)", before, after, mean, "IoU with FP32's box, mean"),
        Figure(where, count, "least IoU with FP32's box", 1.0, least, close, f"pictures with an IoU of {CLOSE}"),
    ]


def open_ultraface(data: Path) -> Case:
    """Calibrated on everyday photos and five people, judged on the others, an astronaut and a cup of coffee."""
    folder = data / "faces-orl"
    people = sorted(path for path in folder.iterdir() if path.is_dir())
    faces = [[str(path) for path in sorted(person.glob("*.pgm"))] for person in people]
    photos = sorted(str(path) for path in (data / "coco128" / "images").glob("*.jpg"))
    seen = [file for person in faces[:CALIBRATION_PEOPLE] for file in person]
    unseen = [file for person in faces[CALIBRATION_PEOPLE:] for file in person]
    others = [str(data / "photos" / f"content_{name}.png") for name in ("astronaut", "coffee")]
    expected = np.asarray([1] * len(unseen) + [1, 0])
    where = f"faces-orl, {len(people) - CALIBRATION_PEOPLE} people not calibrated on; photos of an astronaut and a cup"

    sizes = [read_image(file).size for file in [*unseen, *others]]

    def judge(fp32: Outputs, int8: Outputs) -> list[Figure]:
        return judge_faces(where, detect(fp32, sizes), detect(int8, sizes), expected)

    return Case(
        name="ultraface_rfb_320",
        source=data / "weights" / "ultraface_rfb_320.onnx",
        preprocess=PREPROCESS,
        calibration=FileDataset(f"images:{data}", [*photos, *seen]),
        calibrated_on=f"coco128 and faces-orl, {CALIBRATION_PEOPLE} people",
        judged=FileDataset(f"images:{data}", [*unseen, *others]),
        judge=judge,
    )
