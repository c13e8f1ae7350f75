"""Decoders: from a network's outputs to `Candidates`, one module per family of detectors.

A decoder is a function ``decode(outputs, size, *, confidence, multi_label, **options) -> list[Candidates]``:

* ``outputs``: output name → array ``[B, …]``.
* ``size``: height and width of the network's input, in pixels.
* ``confidence``: only candidates with a score above it, 0..1.
* ``multi_label``: one candidate for each class of a box above ``confidence``, rather than for the best alone.
* ``options``: its own plain settings, which the bundle carries: strides, anchors, …

It returns one `Candidates` per picture and raises `EngineError` for outputs of another form than its family's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy.typing as npt

from edgevision.detection.candidates import Candidates
from edgevision.preprocess import Preprocess
from edgevision.registry import Registry

Outputs: TypeAlias = Mapping[str, "npt.NDArray[Any]"]
Decoder: TypeAlias = Callable[..., Sequence[Candidates]]

DECODERS = Registry(
    "decoder",
    "edgevision.decoders",
    {
        "end2end": "edgevision.detection.decoders.end2end:decode",
        "fastestdet": "edgevision.detection.decoders.fastestdet:decode",
        "nanodet": "edgevision.detection.decoders.nanodet:decode",
        "ssd": "edgevision.detection.decoders.ssd:decode",
        "ssd_onnx": "edgevision.detection.decoders.ssd_onnx:decode",
        "ultraface": "edgevision.detection.decoders.ultraface:decode",
        "yolov3": "edgevision.detection.decoders.yolov3:decode",
        "yolov5": "edgevision.detection.decoders.yolov5:decode",
        "yolov6": "edgevision.detection.decoders.yolov6:decode",
        "yolov8": "edgevision.detection.decoders.yolov8:decode",
        "yolox": "edgevision.detection.decoders.yolox:decode",
    },
)


@dataclass(frozen=True)
class Family:
    """What is known of the detectors that a decoder reads, where their user says nothing.

    Attributes:
        preprocess: how they were trained to see pictures; its size is only that of the usual file.
        confidence: least score that its authors show.
        iou: threshold of its authors' suppression.
        classes: names by index, where all of the family find the same.
        count_classes: ``(outputs, size, **options)`` → number of classes.
        suppressed: whether its outputs are final: there is nothing left to suppress.
    """

    preprocess: Preprocess | None = None
    confidence: float = 0.25
    iou: float = 0.5
    classes: tuple[str, ...] = ()
    count_classes: Callable[..., int] | None = None
    suppressed: bool = False


def family_of(name: str) -> Family:
    """The family that a decoder of `DECODERS` reads: ``FAMILY`` of its module.

    Raises:
        UsageError: no such decoder.
    """
    module = sys.modules[DECODERS.resolve(name).__module__]
    family = getattr(module, "FAMILY", Family())
    return family if isinstance(family, Family) else Family()
