"""What a student is taught: which losses, between which layers, with which weight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from edgevision.errors import UsageError
from edgevision.registry import check_keys

# the student's layer and the teacher's
LayerPair = tuple[str, str]


@dataclass(frozen=True)
class DistillConfig:
    """How a teacher's answers and the labels make one loss.

    ``(1 − alpha) · label loss + alpha · logits loss + feature_weight · Σ feature loss
    + channelwise_weight · Σ channelwise loss``

    Detectors learn from boxes with full weight, and from the teacher's answers besides: ``label loss + alpha · decay ·
    answers' loss + …``, where decay falls from 1 to 0 along a cosine over the run (Li et al. 2022, *YOLOv6*, arXiv
    2209.02976, section 2.4.2, self-distillation). Answers are the class maps, and sides where they are distributions.

    Layers are dotted names of modules (``features.13``); ``"head"`` among ``channelwise`` of detectors stands for the
    layers that put out the scores. A pair may be given as ``("features.7", "features.13")``,
    as ``"features.7=features.13"``, or as one name for both networks.

    Attributes:
        temperature: T that softens the logits of both (Hinton et al. 2015, section 2); above 0.
        alpha: the teacher's share against the labels', 0 to 1. At 1 the labels are not used; at 0 the teacher's
            logits are not, and its classes may be others (a hint alone).
        features: pairs of layers whose maps are to be equal (Romero et al. 2015, section 2.2).
        feature_weight: weight of each pair's loss, above 0.
        channelwise: pairs of layers whose channels are to look at the same places (Shu et al. 2021), for the
            dense heads of detectors and for feature maps.
        channelwise_weight: weight of each pair's loss, above 0. The paper has 3 for maps of logits and 50 for
            features, beside a segmentation's label loss.
        channelwise_temperature: T of the softmax over places; above 0. The paper's is 4.

    Raises:
        UsageError: a value outside its range, a layer without a name, or a config that teaches nothing.
    """

    temperature: float = 4.0
    alpha: float = 0.5
    features: tuple[LayerPair, ...] = ()
    feature_weight: float = 1.0
    channelwise: tuple[LayerPair, ...] = ()
    channelwise_weight: float = 1.0
    channelwise_temperature: float = 4.0

    def __post_init__(self) -> None:
        for name in ("temperature", "channelwise_temperature", "feature_weight", "channelwise_weight"):
            value = _number(name, getattr(self, name))
            if not 1e-6 <= value <= 1e6:
                raise UsageError(f"{name} must be above 0; got {value:g}")
        if not 0 <= _number("alpha", self.alpha) <= 1:
            raise UsageError(f"alpha is the teacher's share, 0 to 1; got {self.alpha:g}")
        for name in ("features", "channelwise"):
            object.__setattr__(self, name, _pairs(name, getattr(self, name)))
        if not (self.alpha or self.features or self.channelwise):
            raise UsageError("alpha = 0 without features or channelwise layers teaches nothing: name layers, or alpha")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, **{name: [list(pair) for pair in values[name]] for name in ("features", "channelwise")}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DistillConfig:
        """Build from plain values (TOML or JSON); what is not named keeps its default.

        Raises:
            UsageError: an unknown key (the near ones are named) or a wrong value.
        """
        check_keys("distillation key", values, [field.name for field in fields(cls)])
        return cls(**values)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UsageError(f"{name} must be a number; got {value!r}")
    return float(value)


def _pairs(name: str, layers: Any) -> tuple[LayerPair, ...]:
    if isinstance(layers, str) or not isinstance(layers, Sequence):
        raise UsageError(f"{name} must be a list of layers or of pairs of layers; got {layers!r}")
    # a pair that is named twice is one pair
    return tuple(dict.fromkeys(_pair(name, layer) for layer in layers))


def _pair(name: str, layer: Any) -> LayerPair:
    if isinstance(layer, str):
        student, equals, teacher = (part.strip() for part in layer.partition("="))
        pair: Any = (student, teacher) if equals else (student, student)
    else:
        pair = tuple(layer) if isinstance(layer, Sequence) else ()
    if len(pair) != 2 or not all(isinstance(part, str) and part for part in pair):
        raise UsageError(f"{name} takes LAYER, or STUDENT_LAYER=TEACHER_LAYER; got {layer!r}")
    return pair[0], pair[1]
