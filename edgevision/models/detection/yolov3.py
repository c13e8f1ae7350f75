"""YOLOv3 on Darknet-53, and YOLOv3-tiny. Redmon and Farhadi 2018, arXiv 1804.02767."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from edgevision.detection.priors import COCO_PRIORS
from edgevision.models.detection.build import build_detector
from edgevision.models.detection.config import DetectorConfig
from edgevision.models.detection.detector import Detector

# as the authors' configuration of the tiny form has them, of COCO at 416 × 416, [width, height] in pixels
TINY_ANCHORS = ((10, 14), (23, 27), (37, 58), (81, 82), (135, 169), (344, 319))

YOLOV3 = DetectorConfig(
    backbone={"name": "darknet53"},
    neck={"name": "yolov3"},
    head={"name": "yolov3", "hidden": (1024, 512, 256), "anchors": COCO_PRIORS},
    strides=(32, 16, 8),
)

YOLOV3_TINY = DetectorConfig(
    backbone={"name": "darknet_tiny"},
    neck={"name": "yolov3_tiny"},
    head={"name": "yolov3", "hidden": (512, 256), "anchors": TINY_ANCHORS},
    strides=(32, 16),
)


def build_yolov3(
    config: DetectorConfig,
    *,
    num_classes: int = 80,
    in_channels: int = 3,
    input_size: int = 416,
    width: float = 1.0,
    anchors: Sequence[Sequence[float]] | None = None,
) -> Detector:
    """A YOLOv3 with fresh weights; ``anchors``: `with_anchors`. Others: see
    `edgevision.models.detection.build.build_detector`.
    """
    return build_detector(
        with_anchors(config, anchors, input_size, width),
        num_classes=num_classes,
        in_channels=in_channels,
        input_size=input_size,
        width=width,
    )


def with_anchors(
    config: DetectorConfig, anchors: Sequence[Sequence[float]] | None, input_size: int, width: float
) -> DetectorConfig:
    """The configuration with priors of one's own, in pixels of the input, as `edgevision priors` prints them.

    None: the paper's. Those are of 416 × 416 pixels, and are scaled to another input size.
    """
    if anchors is None:
        scale = input_size / 416
        anchors = [(w * scale, h * scale) for w, h in config.head["anchors"]]
    return replace(config, head={**config.head, "anchors": anchors, "width": width})


yolov3 = partial(build_yolov3, YOLOV3)
yolov3_tiny = partial(build_yolov3, YOLOV3_TINY)
