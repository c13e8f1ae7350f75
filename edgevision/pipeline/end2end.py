"""`convert --nms graph`: bundles whose engine gives detections instead of a network's raw outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from edgevision.detection.postprocess import Postprocess
from edgevision.errors import UsageError
from edgevision.parity import MAX_DB

if TYPE_CHECKING:
    from edgevision.bundle import Thresholds

NMS = ("device", "graph")

Groups = Mapping[str, Mapping[str, npt.NDArray[Any]]]


def name_of_nms(nms: str) -> str:
    """What a bundle's name has behind the model's, so that both kinds may lie side by side and be told apart."""
    return "-nms" if nms == "graph" else ""


def check_nms_in_graph(targets: Sequence[str], postprocess: Postprocess | None) -> None:
    """Refuse what cannot decode and suppress inside the graph, before any work.

    Raises:
        UsageError: no detector, a decoder of somebody's own, or a target without it.
    """
    from edgevision_converters.end2end import check_decoder
    from edgevision_converters.target import check_nms

    if postprocess is None:
        raise UsageError("--nms graph is for detectors: name what decodes the outputs with --decoder")
    check_decoder(postprocess)
    for target in targets:
        check_nms(target)


def end2end(postprocess: Postprocess) -> Postprocess:
    """How detections are read that the graph has made by ``postprocess``."""
    fixed = postprocess.to_dict()
    thresholds = {key: value for key, value in fixed.items() if key not in ("decoder", "options")}
    return Postprocess("end2end", {"graph": fixed}, **thresholds)


def golden_detections(groups: Groups, postprocess: Postprocess, size: tuple[int, int]) -> dict[str, Any]:
    """Golden tensors of the same pictures with the detections in the place of raw outputs."""
    from edgevision_converters.end2end import detections_of

    return {key: group if key == "pixels" else detections_of(group, postprocess, size) for key, group in groups.items()}


def end2end_thresholds(keys: Sequence[str]) -> dict[str, Thresholds]:
    """What must be kept of the numbers themselves: nothing, for one more or less moves all rows behind it.

    What the boxes must keep is added to these by `edgevision.pipeline.golden.box_thresholds`.
    """
    from edgevision.bundle import Thresholds

    return dict.fromkeys(keys, Thresholds(cosine=-1.0, sqnr_db=-MAX_DB))
