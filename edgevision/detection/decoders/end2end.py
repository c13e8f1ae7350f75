"""Detections that the graph has decoded and suppressed itself: the four outputs of TensorRT's EfficientNMS.

``num_detections`` ``[B, 1]``; ``detection_boxes`` ``[B, M, 4]`` xyxy in pixels of the input, ``detection_scores``
``[B, M]`` and ``detection_classes`` ``[B, M]``, best first. Rows behind a picture's number mean nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgevision.detection.candidates import Candidates
from edgevision.detection.decoders import Family, Outputs
from edgevision.detection.decoders.common import refuse

OUTPUTS = ("num_detections", "detection_boxes", "detection_scores", "detection_classes")
_EXPECTED = (
    "num_detections [B, 1], detection_boxes [B, M, 4], detection_scores [B, M] and detection_classes [B, M]"
)  # fmt: skip


def decode(
    outputs: Outputs,
    size: tuple[int, int],
    *,
    confidence: float,
    multi_label: bool = False,
    graph: Mapping[str, Any] | None = None,
) -> list[Candidates]:
    """See the module and `edgevision.detection.decoders`; ``multi_label`` is the graph's.

    Args:
        graph: `edgevision.detection.postprocess.Postprocess` of what the graph does, as plain values, where it is
            known; `Postprocess.fixed` holds a caller to it.
    """
    if any(name not in outputs for name in OUTPUTS):
        raise refuse("end2end", outputs, _EXPECTED)
    count, boxes, scores, labels = (outputs[name] for name in OUTPUTS)
    rows = scores.shape
    if len(rows) != 2 or boxes.shape != (*rows, 4) or labels.shape != rows or count.size != rows[0]:
        raise refuse("end2end", outputs, _EXPECTED)
    found = (np.arange(rows[1]) < count.reshape(-1, 1)) & (scores > confidence)
    return [
        Candidates(boxes[picture, kept], scores[picture, kept], labels[picture, kept])
        for picture, kept in enumerate(found)
    ]


FAMILY = Family(suppressed=True)
