"""Ultra-Light-Fast-Generic-Face-Detector-1MB (Linzaer, 2019): ``scores`` ``[B, N, 2]`` and ``boxes`` ``[B, N, 4]``.

Probabilities of background and face; corners as shares of the input's width and height.
"""

from __future__ import annotations

from edgevision.detection.candidates import Candidates
from edgevision.detection.decoders import Family, Outputs, ssd_onnx
from edgevision.detection.decoders.common import refuse
from edgevision.preprocess import Preprocess

_EXPECTED = "scores [B, N, 2] and boxes [B, N, 4]"


def decode(
    outputs: Outputs, size: tuple[int, int], *, confidence: float, multi_label: bool = False
) -> list[Candidates]:
    """See the module and `edgevision.detection.decoders`."""
    if not any(value.ndim == 3 and value.shape[2] == 2 for value in outputs.values()):
        raise refuse("ultraface", outputs, _EXPECTED)
    return ssd_onnx.decode(outputs, size, confidence=confidence, multi_label=multi_label, normalized=True, background=0)


def count_classes(outputs: Outputs, size: tuple[int, int], **_: object) -> int:
    """Faces alone."""
    return 1


# the project's own settings, but that faces keep their shape
FAMILY = Family(
    Preprocess((240, 320), "letterbox", scale=1.0, mean=(127.0,) * 3, std=(128.0,) * 3),
    confidence=0.7,
    iou=0.3,
    classes=("face",),
    count_classes=count_classes,
)
