"""`Postprocess`: from a network's outputs to `Detections`, the same numpy code for every engine and in training."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevision.detection.boxes import clip_boxes
from edgevision.detection.candidates import Candidates
from edgevision.detection.decoders import DECODERS, Decoder, Outputs, family_of
from edgevision.detection.detections import Detections
from edgevision.detection.nms import non_maximum_suppression
from edgevision.errors import EdgeVisionError, EngineError, UsageError
from edgevision.preprocess import Placement
from edgevision.registry import check_keys, unknown_name

# what a decoder raises whose options have another type or number than it wants
_OPTIONS_ERRORS = (TypeError, ValueError, IndexError, KeyError, ArithmeticError, AttributeError)
# what a graph that suppresses by itself settles; its confidence and number of detections are bounds
_SETTLED = ("iou", "max_candidates", "class_agnostic", "multi_label")
# of somebody's own decoder
_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Postprocess:
    """How outputs become boxes: decode, threshold, keep the best, suppress.

    Attributes:
        decoder: name in `edgevision.detection.decoders.DECODERS`, or ``package.module:function`` of somebody's own,
            which whoever loads the bundle passes as ``function``: a bundle never makes a machine import anything.
        options: settings of the decoder, plain values.
        confidence: least score, 0..1; scores above it are kept.
        iou: intersection over union, 0..1, above which the worse of two boxes of a class goes.
        max_candidates: how many of the best go on to the suppression.
        max_detections: how many a picture may have.
        class_agnostic: whether boxes suppress those of other classes too.
        multi_label: whether a box may have several classes, as COCO's evaluation rewards, or its best alone.
        function: the decoder itself, where ``decoder`` names somebody's own; not stored.

    Raises:
        UsageError: a value of another type or out of range.
    """

    decoder: str
    options: dict[str, Any] = field(default_factory=dict)
    confidence: float = 0.25
    iou: float = 0.5
    max_candidates: int = 1000
    max_detections: int = 300
    class_agnostic: bool = False
    multi_label: bool = False
    function: Decoder | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.decoder, str) or not self.decoder:
            raise UsageError(f"a decoder is named by a text; got {self.decoder!r}")
        for name in ("confidence", "iou"):
            object.__setattr__(self, name, _share(name, getattr(self, name)))
        for name in ("max_candidates", "max_detections"):
            object.__setattr__(self, name, _count(name, getattr(self, name)))
        for name in ("class_agnostic", "multi_label"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name} must be true or false; got {getattr(self, name)!r}")
        object.__setattr__(self, "options", _plain(self.options))
        if self.fixed is not None:
            _refuse_other_suppression(self, self.fixed)

    @cached_property
    def fixed(self) -> Postprocess | None:
        """What the graph itself does, decoding and suppression; None where both are done here, or nobody knows."""
        if "graph" not in self.options or not self._suppressed:
            return None
        return Postprocess.from_dict(self.options["graph"])

    def adjusted(self, **changes: Any) -> Postprocess:
        """The same with other thresholds, as far as a graph that suppresses by itself leaves them open.

        What such a graph has dropped is gone: no confidence is less than its own, and how it suppresses stays.
        """
        fixed = self.fixed
        if fixed is None:
            return replace(self, **changes)
        confidence = max(changes.get("confidence", self.confidence), fixed.confidence)
        most = min(changes.get("max_detections", self.max_detections), fixed.max_detections)
        return replace(self, confidence=confidence, max_detections=most)

    def __call__(
        self,
        outputs: Outputs,
        size: tuple[int, int],
        placements: Sequence[Placement],
        classes: Sequence[str] = (),
    ) -> list[Detections]:
        """Detections of every picture of a batch.

        Args:
            outputs: output name → array ``[B, …]``.
            size: height and width of the network's input, in pixels.
            placements: where each of the B pictures lies in the input.
            classes: names by index.

        Raises:
            EngineError: outputs that are NaN or infinite, or of another form than the decoder's.
            UsageError: an unknown decoder or option; somebody's own decoder that was not passed.
        """
        found = self.candidates(outputs, size)
        if len(found) != len(placements):
            raise EngineError(f"decoder {self.decoder} gave {len(found)} pictures; {len(placements)} were put in")
        return [self._detections(one, at, tuple(classes)) for one, at in zip(found, placements, strict=True)]

    def candidates(self, outputs: Outputs, size: tuple[int, int]) -> list[Candidates]:
        """What the decoder finds, before anything is suppressed; see `__call__`."""
        refuse_infinite(outputs)
        found = self._decoded(outputs, size)
        if not isinstance(found, (list, tuple)) or not all(isinstance(one, Candidates) for one in found):
            raise UsageError(
                f"decoder {self.decoder} must return a list with one edgevision.detection.Candidates per picture; got "
                f"{type(found).__name__}"
            )
        return list(found)

    def _decoded(self, outputs: Outputs, size: tuple[int, int]) -> Any:
        decode, options = self._decode
        try:
            return decode(outputs, size, confidence=self.confidence, multi_label=self.multi_label, **options)
        except _OPTIONS_ERRORS as error:
            if self.function is not None or isinstance(error, EdgeVisionError):
                raise
            # ours read any outputs that they take: only what was set can be wrong
            raise UsageError(f"decoder {self.decoder} cannot use its options {self.options}: {error}") from error

    def _detections(self, found: Candidates, placement: Placement, classes: tuple[str, ...]) -> Detections:
        if not np.isfinite(found.boxes).all():
            raise EngineError(f"decoder {self.decoder} gave boxes that are NaN or infinite")
        best = found.best(self.max_candidates)
        kept = self._kept(best)
        boxes = clip_boxes(placement.to_original(best.boxes[kept]), placement.width, placement.height)
        # what lies in the border of a letterbox, or on a line, is no part of the picture
        inside = ((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])).nonzero()[0]
        kept = kept[inside]
        return Detections(boxes[inside], best.scores[kept], best.labels[kept], classes)

    def _kept(self, found: Candidates) -> npt.NDArray[np.intp]:
        """Which are shown, best first."""
        if self._suppressed:
            return np.argsort(-found.scores, kind="stable")[: self.max_detections]
        return non_maximum_suppression(
            found.boxes,
            found.scores,
            found.labels,
            iou=self.iou,
            class_agnostic=self.class_agnostic,
            max_detections=self.max_detections,
        )

    @cached_property
    def _suppressed(self) -> bool:
        """Whether what the decoder reads has been suppressed."""
        return self.function is None and self.decoder in DECODERS and family_of(self.decoder).suppressed

    @cached_property
    def _decode(self) -> tuple[Decoder, dict[str, Any]]:
        """The decoder and its options; looked up once, which takes longer than decoding a picture."""
        options = _tuples(self.options)
        if self.function is not None:
            return self.function, options
        if self.decoder in DECODERS:
            decode: Decoder = DECODERS.resolve(self.decoder)
            named = inspect.signature(decode).parameters.values()
            valid = {parameter.name for parameter in named if parameter.kind is parameter.KEYWORD_ONLY}
            check_keys(f"option of decoder {self.decoder}", self.options, valid - {"confidence", "multi_label"})
            return decode, options
        if is_function(self.decoder):
            module, _, name = self.decoder.partition(":")
            raise UsageError(
                f"these outputs are decoded by {self.decoder}, a function of somebody's own, and edgevision imports "
                f"nothing that a bundle names. Pass it: from {module} import {name}; "
                f"edgevision.load(bundle, decoder={name}); edgevision predict and eval take --decoder FILE.py:{name}"
            )
        raise UsageError(unknown_name("decoder", self.decoder, DECODERS.names()))

    def count_classes(self, outputs: Outputs, size: tuple[int, int]) -> int | None:
        """Number of classes of such outputs; None where the decoder cannot tell."""
        if self.function is not None or self.decoder not in DECODERS:
            return None
        count = family_of(self.decoder).count_classes
        return None if count is None else count(outputs, size, **_tuples(self.options))

    def with_function(self, function: Decoder) -> Postprocess:
        """The same with somebody's own decoder.

        Raises:
            UsageError: the graph decodes and suppresses by itself.
        """
        if self.fixed is not None:
            raise UsageError(
                "this bundle's graph decodes and suppresses by itself, which leaves a decoder of yours nothing to "
                "read: leave it out, or convert again with --nms device"
            )
        return replace(self, function=function)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "function"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Postprocess:
        """Build from plain values.

        Raises:
            UsageError: an unknown key (the near ones are named) or a wrong value.
        """
        if not isinstance(values, Mapping) or "decoder" not in values:
            raise UsageError("a postprocess is a table of keys and values, with a decoder")
        check_keys("postprocess key", values, [entry.name for entry in fields(cls) if entry.name != "function"])
        return cls(**values)


def parse_postprocess(text: str) -> Postprocess:
    """``NAME[:key=value,…]`` as the command line and recipes say it, with the family's thresholds where none are given.

    Keys are fields of `Postprocess` and options of the decoder; values are numbers, ``true``, ``false``, texts, or
    lists in square brackets, e.g. ``yolov8:confidence=0.3,strides=[8,16,32,64]``.

    Raises:
        UsageError: an unknown decoder, or no such form.
    """
    name, pairs = _split(text)
    if name not in DECODERS and not is_function(name):
        valid = DECODERS.names()
        raise UsageError(f"{unknown_name('decoder', name, valid)} Or name a function of yours: package.module:function")
    own = {entry.name for entry in fields(Postprocess)} - {"decoder", "options", "function"}
    family = family_of(name) if name in DECODERS else None
    given = {} if family is None else {"confidence": family.confidence, "iou": family.iou}
    options = {key: value for key, value in pairs.items() if key not in own}
    return Postprocess(name, options, **{**given, **{key: value for key, value in pairs.items() if key in own}})


def is_function(name: str) -> bool:
    """Whether a decoder's name is that of a function: ``package.module:function``."""
    return _FUNCTION.fullmatch(name) is not None


def refuse_infinite(outputs: Outputs) -> None:
    """Refuse NaN and infinity.

    Raises:
        EngineError: an output holds one.
    """
    for name, value in outputs.items():
        if not np.isfinite(value).all():
            raise EngineError(
                f"the engine answered NaN or infinity in output {name} {list(value.shape)}; run edgevision verify on "
                "the bundle, or convert to fp32"
            )


def _split(text: str) -> tuple[str, dict[str, Any]]:
    """Name and key → value."""
    if not isinstance(text, str):
        raise UsageError(f"a decoder is NAME[:key=value,…]; got {text!r}")
    name, _, last = text.rpartition(":")
    if "=" not in last:
        return text, {}
    pairs = {}
    # commas inside square brackets belong to a list
    for part in re.split(r",(?![^\[]*\])", last):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--decoder {text}: expected NAME[:key=value,…]; got {part!r}")
        pairs[key.strip()] = _value(value.strip())
    return name, pairs


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _refuse_other_suppression(asked: Postprocess, fixed: Postprocess) -> None:
    """Refuse thresholds that a graph which suppresses by itself cannot have."""
    wrong = [name for name in _SETTLED if getattr(asked, name) != getattr(fixed, name)]
    wrong += ["confidence"] if asked.confidence < fixed.confidence else []
    wrong += ["max_detections"] if asked.max_detections > fixed.max_detections else []
    if wrong:
        name = wrong[0]
        bound = {"confidence": " or more", "max_detections": " or fewer"}.get(name, " alone")
        raise UsageError(
            f"this bundle's graph suppresses by itself, with {name} {getattr(fixed, name)}{bound}; got "
            f"{getattr(asked, name)}. Convert again with that {name}, or with --nms device, where it stays open"
        )


def _share(name: str, value: Any) -> float:
    if not isinstance(value, Real) or isinstance(value, bool) or not 0.0 <= float(value) <= 1.0:
        raise UsageError(f"{name} must be a number from 0 to 1; got {value!r}")
    return float(value)


def _count(name: str, value: Any) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{name} must be a whole number of at least 1; got {value!r}")
    return int(value)


def _plain(options: Any) -> dict[str, Any]:
    """Options as JSON gives them back, so that what is stored equals what was given."""
    try:
        values = json.loads(json.dumps(dict(options), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UsageError(f"options of a decoder must be plain values, as JSON takes them: {error}") from error
    return dict(values)


def _tuples(value: Any) -> Any:
    """Lists as tuples, all the way down."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
