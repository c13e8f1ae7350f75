"""YOLOv6: anchor-free detectors of RepVGG blocks. Li et al. 2022, arXiv 2209.02976; 2023, arXiv 2301.05586 (3.0).

N, S and M have the layouts of 3.0: RepBi-PAN, for N and S SimCSPSPPF, for M stages of BepC3. T has no 3.0 layout; its
is that of the first paper (Rep-PAN, SimSPPF). The auxiliary anchor branch that 3.0 trains N and S with is not part of
the networks: it is cut off before they run.
"""

from __future__ import annotations

from functools import partial

from edgevision.models.detection.build import build_detector
from edgevision.models.detection.config import DetectorConfig
from edgevision.models.detection.detector import Detector

# of all batch norms, as the authors train
NORM = {"eps": 1e-3, "momentum": 0.03}

YOLOV6_N = DetectorConfig(
    backbone={"name": "efficientrep", "depth": 0.33, "scale": 0.25, "pooling": "csp_sppf"},
    neck={"name": "rep_bi_pan", "depth": 0.33, "scale": 0.25},
    head={"name": "decoupled"},
    norm=NORM,
)

YOLOV6_T = DetectorConfig(
    backbone={"name": "efficientrep", "depth": 0.25, "scale": 0.50, "pooling": "sppf"},
    neck={"name": "rep_pan", "depth": 0.25, "scale": 0.50},
    head={"name": "decoupled"},
    norm=NORM,
)

YOLOV6_S = DetectorConfig(
    backbone={"name": "efficientrep", "depth": 0.33, "scale": 0.50, "pooling": "csp_sppf"},
    neck={"name": "rep_bi_pan", "depth": 0.33, "scale": 0.50},
    head={"name": "decoupled"},
    norm=NORM,
)

YOLOV6_M = DetectorConfig(
    backbone={"name": "efficientrep", "depth": 0.60, "scale": 0.75, "pooling": "sppf", "expansion": 2 / 3},
    neck={"name": "rep_bi_pan", "depth": 0.60, "scale": 0.75, "expansion": 2 / 3},
    head={"name": "decoupled", "reg_max": 16},
    norm=NORM,
)

YOLOV6_LITE_S = DetectorConfig(
    backbone={"name": "lite", "scale": 0.7},
    neck={"name": "lite_pan", "scale": 1.0},
    head={"name": "decoupled", "convolution": "depthwise"},
    strides=(8, 16, 32, 64),
    size_multiple=64,
    norm=NORM,
)


# each takes the arguments of `edgevision.models.detection.build.build_detector`
yolov6_n = partial(build_detector, YOLOV6_N)
yolov6_t = partial(build_detector, YOLOV6_T)
yolov6_s = partial(build_detector, YOLOV6_S)
yolov6_m = partial(build_detector, YOLOV6_M)


def yolov6lite_s(*, num_classes: int = 80, in_channels: int = 3, input_size: int = 320, width: float = 1.0) -> Detector:
    """YOLOv6-Lite-S, for ARM. See `edgevision.models.detection.build.build_detector` for the arguments."""
    return build_detector(YOLOV6_LITE_S, **locals())
