"""From a detector to the loss it is trained with."""

from __future__ import annotations

from typing import Any

from torch import nn

from edgevision.errors import ModelError, UsageError
from edgevision.registry import unknown_name
from edgevision.training.detection.criteria.anchor_free import ASSIGNERS, AnchorFreeCriterion
from edgevision.training.detection.criteria.base import Criterion
from edgevision.training.detection.criteria.ssd import SsdCriterion
from edgevision.training.detection.criteria.yolov3 import Yolov3Criterion
from edgevision.training.detection.losses.iou import BOX_LOSSES

__all__ = ["Criterion", "build_criterion"]

_KINDS = ("yolov6", "yolov3", "ssd")


def build_criterion(
    detector: nn.Module,
    *,
    box_loss: str | None = None,
    assigner: str = "tal",
    warmup_epochs: int = 4,
) -> Criterion:
    """The criterion for a detector's kind of head.

    Args:
        detector: with ``head.kind`` (``"yolov6"``, ``"yolov3"`` or ``"ssd"``), ``strides``, and ``postprocess()``,
            whose options say how its maps are decoded.
        box_loss: ``"iou"``, ``"giou"``, ``"siou"`` or ``"ciou"``; by default ``"giou"`` for YOLOv6, and for the others
            what their papers have: squared error for YOLOv3, smooth L1 for SSD.
        assigner: ``"tal"``, ``"simota"`` or ``"atss"``; for YOLOv6 alone.
        warmup_epochs: epochs in which ATSS assigns instead; for YOLOv6 alone.

    Raises:
        UsageError: unknown names or a negative number of epochs.
        ModelError: a head of another kind.
    """
    if box_loss is not None and box_loss not in BOX_LOSSES:
        raise UsageError(unknown_name("box loss", box_loss, BOX_LOSSES))
    if assigner not in ASSIGNERS:
        raise UsageError(unknown_name("assigner", assigner, ASSIGNERS))
    if warmup_epochs < 0:
        raise UsageError(f"warmup_epochs is 0 or more, and not {warmup_epochs}")
    kind = getattr(getattr(detector, "head", None), "kind", None)
    if kind not in _KINDS:
        raise ModelError(f"a detector's head is of the kind {', '.join(_KINDS)}, and not {kind!r}")
    anything: Any = detector
    options: dict[str, Any] = anything.postprocess().options
    if kind == "yolov3":
        return Yolov3Criterion(options["strides"], options["anchors"], box_loss=box_loss)
    if kind == "ssd":
        return SsdCriterion(
            options["priors"],
            variances=options["variances"],
            stride=anything.strides[0],
            input_size=_input_size(detector),
            box_loss=box_loss,
        )
    return AnchorFreeCriterion(
        options["strides"],
        reg_max=options.get("reg_max", 0),
        box_loss=box_loss or "giou",
        assigner=assigner,
        warmup_epochs=warmup_epochs,
    )


def _input_size(detector: nn.Module) -> tuple[int, int] | None:
    """Height and width that a network of `create_model` is meant for; None for others."""
    architecture = getattr(detector, "architecture", None)
    size = architecture["arguments"].get("input_size") if isinstance(architecture, dict) else None
    return None if size is None else (int(size), int(size))
