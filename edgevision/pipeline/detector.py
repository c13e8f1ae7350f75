"""How the outputs of a detector that is converted become boxes, and whether they do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from edgevision.detection.decoders import DECODERS, Family, Outputs, family_of
from edgevision.detection.postprocess import Postprocess, is_function
from edgevision.errors import EngineError, UsageError

if TYPE_CHECKING:
    from edgevision.data.base import Dataset
    from edgevision_converters.export import Source


def as_detector(source: Source, given: Postprocess | None) -> tuple[Source, Postprocess | None]:
    """A source with the task, preprocess and classes of its decoder's family, where it has none of its own.

    Args:
        source: what is converted; one of our own detectors brings its postprocess.
        given: the caller's postprocess, which goes before the source's.

    Returns:
        the source, and how its outputs become boxes: None where it is no detector.

    Raises:
        UsageError: a detector whose decoder nobody names.
    """
    from edgevision_converters.export import postprocess_of

    chosen = given or postprocess_of(source.graph)
    if chosen is None:
        if source.task == "detection":
            raise UsageError(
                f"{source.name} is a detector: name what decodes its outputs with --decoder, one of "
                f"{', '.join(DECODERS.names())}, or a function of yours as package.module:function"
            )
        return source, None
    family = family_of(chosen.decoder) if chosen.decoder in DECODERS else Family()
    preprocess = source.preprocess or family.preprocess
    return replace(source, task="detection", preprocess=preprocess, classes=source.classes or family.classes), chosen


def detector_classes(
    chosen: Postprocess,
    outputs: Outputs,
    size: tuple[int, int],
    *,
    given: Sequence[str] | None,
    known: Sequence[str],
    dataset: Dataset | None,
) -> tuple[str, ...]:
    """Names by index: the caller's, the source's, or the data set's where their number is right.

    The outputs are decoded once, so that a wrong decoder is told here and not on the device. A function of the
    caller's own is not: it is imported where it is used, by whoever uses it.

    Args:
        chosen: how outputs become boxes.
        outputs: of the network, on any pictures.
        size: height and width of the network's input, in pixels.
        given: the caller's names.
        known: the source's.
        dataset: that is calibrated with.

    Raises:
        UsageError: the decoder cannot read these outputs, or there are more or fewer names than classes.
    """
    if is_function(chosen.decoder) and chosen.decoder not in DECODERS:
        return tuple(given or known)
    try:
        chosen.candidates(outputs, size)
    except EngineError as error:
        raise UsageError(str(error)) from error
    count = chosen.count_classes(outputs, size)
    if given is not None and count not in (None, len(given)):
        raise UsageError(f"the detector has {count} classes; {len(given)} names were given")
    if given is not None or known:
        return tuple(given if given is not None else known)
    return dataset.classes if dataset is not None and len(dataset.classes) == count else ()
