"""Detection on the device: boxes, suppression, decoders, post-processing. numpy and Pillow alone."""

from edgevision.detection.candidates import Candidates
from edgevision.detection.detections import Detections
from edgevision.detection.postprocess import Postprocess

__all__ = ["Candidates", "Detections", "Postprocess"]
