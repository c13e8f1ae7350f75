"""FastestDet (X. Ma, 2022; github.com/dog-qiuqiu/FastestDet): COCO's 80 classes at 352 pixels, judged by AP.

Pictures are resized as everywhere here, antialiased: with OpenCV's resize, which the network was trained with, FP32 has
0.4 points of AP more on all 128 photos. INT8 is compared with FP32 on the same pixels. Boxes end at the picture's
borders, which is worth 1.4 points.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgevision.data.base import Subset
from edgevision.data.coco import open_coco
from edgevision.data.datasets import DetectionDataset
from edgevision.dependencies import require
from edgevision.detection import Detections, Postprocess
from edgevision.images import read_image
from edgevision.preprocess import Preprocess
from other_networks.boxes import agreement
from other_networks.case import Case, Figure, Outputs

PREPROCESS = Preprocess((352, 352), color="BGR")
# scores down to where AP no longer counts them, and its authors' suppression
POSTPROCESS = Postprocess("fastestdet", confidence=0.01, iou=0.45)
# a score at which a user would call something found: where agreement with FP32 is taken
FOUND = 0.3


def detect(outputs: Outputs, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
    """Detections in pixels of every picture; ``sizes``: width and height of each."""
    return POSTPROCESS(outputs, PREPROCESS.size, [PREPROCESS.placement(*size) for size in sizes])


def average_precision(
    annotations: Path, image_ids: Sequence[int], found: Sequence[Detections], category_ids: Sequence[int]
) -> tuple[float, float]:
    """COCO's AP at IoU 0.50:0.95 and AP50, 0..100, on the given pictures.

    Raises:
        MissingDependencyError: faster-coco-eval is not installed.
    """
    coco = require("faster_coco_eval", purpose="measure AP")
    results = [
        {
            "image_id": image,
            "category_id": category_ids[int(label)],
            "bbox": [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])],
            "score": float(score),
        }
        for image, detections in zip(image_ids, found, strict=True)
        for box, score, label in zip(detections.boxes, detections.scores, detections.labels, strict=True)
    ]
    if not results:
        return 0.0, 0.0
    truth = coco.COCO(str(annotations), print_function=_silent)
    judge = coco.COCOeval_faster(truth, truth.loadRes(results), iouType="bbox", print_function=_silent)
    judge.params.imgIds = sorted(image_ids)
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return 100 * float(judge.stats[0]), 100 * float(judge.stats[1])


def _silent(*_: object, **__: object) -> None:
    """The evaluator prints its table; ours is another."""


def open_fastestdet(data: Path) -> Case:
    """Calibrated on every second photo, judged on the others and, beside the published figure, on all."""
    annotations = data / "coco128" / "instances.json"
    photos = open_coco(str(annotations))
    assert isinstance(photos, DetectionDataset)
    image_ids = [int(image) for image in photos.image_ids]
    sizes = [read_image(file).size for file in photos.files]
    parts = {"coco128, the 64 photos not calibrated on": range(1, len(photos), 2), "coco128": range(len(photos))}

    def judge(fp32: Outputs, int8: Outputs) -> list[Figure]:
        before, after = detect(fp32, sizes), detect(int8, sizes)
        figures = []
        for where, part in parts.items():
            chosen = [[found[index] for index in part] for found in (before, after)]
            ids = [image_ids[index] for index in part]
            scores = [average_precision(annotations, ids, found, photos.category_ids) for found in chosen]
            alike = agreement(*([found.above(FOUND) for found in side] for side in chosen))
            figures += [
                Figure(where, len(ids), metric, plain, quantized, alike, f"detections above {FOUND} (F1 at IoU 0.5)")
                for metric, plain, quantized in zip(("AP", "AP50"), *scores, strict=True)
            ]
        return figures

    return Case(
        name="fastestdet_coco_352",
        source=data / "weights" / "fastestdet_coco_352.onnx",
        preprocess=PREPROCESS,
        calibration=Subset(photos, range(0, len(photos), 2)),
        calibrated_on="coco128, every second photo",
        judged=photos,
        judge=judge,
    )
