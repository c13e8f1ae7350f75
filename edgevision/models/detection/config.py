"""`DetectorConfig`: what a detector is composed of, as one literal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DetectorConfig:
    """Backbone, neck and head by name, each with its options.

    Attributes:
        backbone: ``{"name": …, options}``: a name of `edgevision.models.detection.build.BACKBONES`, or a classifier of
            the zoo that has `pyramid`.
        neck: likewise, of `edgevision.models.detection.build.NECKS`.
        head: likewise, of `edgevision.models.detection.build.HEADS`.
        strides: of the head's levels, in the order of its outputs.
        size_multiple: height and width of the input must be multiples of it.
        norm: ``eps`` and ``momentum`` of all batch norms, where they are not torch's.
    """

    backbone: Mapping[str, Any]
    neck: Mapping[str, Any]
    head: Mapping[str, Any]
    strides: tuple[int, ...] = (8, 16, 32)
    size_multiple: int = 32
    norm: Mapping[str, float] | None = None
