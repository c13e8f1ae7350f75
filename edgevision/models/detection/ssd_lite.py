"""SSD-Lite on MobileNetV2. Liu et al. 2016, arXiv 1512.02325; Sandler et al. 2018, arXiv 1801.04381, section 6.2."""

from __future__ import annotations

from edgevision.models.detection.build import build_detector
from edgevision.models.detection.config import DetectorConfig
from edgevision.models.detection.detector import Detector

SSDLITE_MOBILENET_V2 = DetectorConfig(
    backbone={"name": "mobilenet_ssd", "network": "mobilenet_v2"},
    neck={"name": "ssd_extras"},
    head={"name": "ssd"},
    strides=(16, 32, 64, 128, 256, 512),
    # maps of any size are rounded up
    size_multiple=1,
)


def ssdlite_mobilenet_v2(
    *, num_classes: int = 80, in_channels: int = 3, input_size: int = 320, width: float = 1.0
) -> Detector:
    """SSD-Lite on MobileNetV2. See `edgevision.models.detection.build.build_detector` for the arguments.

    ``num_classes`` is without the background, which the outputs have besides.
    """
    return build_detector(
        SSDLITE_MOBILENET_V2, num_classes=num_classes, in_channels=in_channels, input_size=input_size, width=width
    )
