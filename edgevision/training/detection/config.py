"""What the training of a detector is told, and recipes by the size of the data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from edgevision.errors import UsageError
from edgevision.models import model_table
from edgevision.registry import unknown_name
from edgevision.training.config import RunConfig


@dataclass(frozen=True)
class DetectionConfig(RunConfig):
    """Settings of a detection run: those of `RunConfig`, and how pictures and boxes are changed on their way.

    Attributes:
        mosaic: probability that a picture becomes one of four (Bochkovskiy et al. 2020, *YOLOv4*, section 3.3).
        mixup: probability that a mosaic is blended with another one (Zhang et al. 2018; Ge et al. 2021, *YOLOX*).
        close_mosaic: epochs at the end without mosaic and mixup, on pictures as the network will meet them
            (*YOLOX*, section 2.1).
        hue: largest shift of hues, 0 to 0.5 of the circle.
        saturation: largest change of saturation, a factor of 1 ± this.
        value: largest change of brightness, a factor of 1 ± this.
        flip: probability of mirroring left to right.
        flip_vertical: probability of mirroring top to bottom.
        scale: pictures are scaled by 1 ± this.
        translate: pictures are moved by up to this share of the input.
        degrees: pictures are turned by up to this many degrees.
        shear: pictures are sheared by up to this many degrees.
        min_visible: boxes of which less than this share is left in the picture are dropped.
        multi_scale: the input's sides change by up to this share every 10 batches, to multiples of 32 or of what the
            network needs.
        box_loss: ``iou``, ``giou``, ``siou`` or ``ciou``; None for the head's own.
        assigner: ``tal``, ``simota`` or ``atss``, for YOLOv6's heads.
        assigner_warmup: epochs in which ATSS assigns instead, for YOLOv6's heads.
        validate_every: epochs between validations; the last epoch is always validated.
        plots: draw batches, curves and the confusion matrix into the run folder.
    """

    epochs: int = 300
    batch_size: int = 32
    lr: float = 0.02
    weight_decay: float = 5e-4
    momentum: float = 0.937
    warmup_epochs: float = 3.0
    ema_decay: float = 0.9998
    grad_clip: float = 10.0

    mosaic: float = 1.0
    mixup: float = 0.0
    close_mosaic: int = 15
    hue: float = 0.015
    saturation: float = 0.7
    value: float = 0.4
    flip: float = 0.5
    flip_vertical: float = 0.0
    scale: float = 0.5
    translate: float = 0.1
    degrees: float = 0.0
    shear: float = 0.0
    min_visible: float = 0.2
    multi_scale: float = 0.0
    box_loss: str | None = None
    assigner: str = "tal"
    assigner_warmup: int = 4
    validate_every: int = 1
    plots: bool = True

    RANGES: ClassVar[dict[str, tuple[type, float, float]]] = {
        **RunConfig.RANGES,
        "mosaic": (float, 0, 1),
        "mixup": (float, 0, 1),
        "close_mosaic": (int, 0, 1e9),
        "hue": (float, 0, 0.5),
        "saturation": (float, 0, 1),
        "value": (float, 0, 1),
        "flip": (float, 0, 1),
        "flip_vertical": (float, 0, 1),
        "scale": (float, 0, 0.95),
        "translate": (float, 0, 0.9),
        "degrees": (float, 0, 180),
        "shear": (float, 0, 60),
        "min_visible": (float, 0, 1),
        "multi_scale": (float, 0, 0.9),
        "assigner_warmup": (int, 0, 1e9),
        "validate_every": (int, 1, 1e9),
    }
    SWITCHES: ClassVar[tuple[str, ...]] = (*RunConfig.SWITCHES, "plots")

    def __post_init__(self) -> None:
        from edgevision.training.detection.criteria.anchor_free import ASSIGNERS
        from edgevision.training.detection.losses.iou import BOX_LOSSES

        super().__post_init__()
        if self.assigner not in ASSIGNERS:
            raise UsageError(unknown_name("assigner", str(self.assigner), ASSIGNERS))
        if self.box_loss is not None and self.box_loss not in BOX_LOSSES:
            raise UsageError(unknown_name("box loss", str(self.box_loss), BOX_LOSSES))

    def with_epochs(self, epochs: int) -> DetectionConfig:
        """The same settings over another number of epochs; warm-up and close-mosaic keep at most their shares."""
        # the warm-up first: a run of fewer epochs than it is refused
        return replace(super().with_epochs(epochs), close_mosaic=min(self.close_mosaic, round(epochs * 0.2)))

    def composes(self, epoch: int) -> bool:
        """Whether ``epoch`` (from 0) may show mosaics."""
        return epoch < self.epochs - self.close_mosaic


# what `train` uses when it is given no config, by how many pictures there are
RECIPES: dict[str, DetectionConfig] = {
    # One thread computes and another reads: where cores are shared, two that compute wait for each other so long that
    # a step takes several times as long.
    "few": DetectionConfig(
        epochs=80, batch_size=8, lr=0.0015, optimizer="adamw", momentum=0.9, weight_decay=0.02, warmup_epochs=2.0,
        ema_decay=0.998, mosaic=0.5, close_mosaic=16, hue=0.01, saturation=0.3, value=0.3, scale=0.3, validate_every=5,
        threads=1,
    ),
    "many": DetectionConfig(),
}  # fmt: skip

# below this, a recipe of many short epochs, and a smaller input
FEW_PICTURES = 2000
FEW_PICTURES_SIZE = 320


def usual_detector_size(name: str, pictures: int) -> int:
    """Input size of a detector of the zoo for so many training pictures, where none is named.

    What the model table says; where there are few pictures, 320 at most: they are learned in minutes then.
    """
    own = next((info.input_size for info in model_table() if info.name == name), 0) or FEW_PICTURES_SIZE
    return min(own, FEW_PICTURES_SIZE) if pictures < FEW_PICTURES else own


def recipe_for_boxes(pictures: int) -> DetectionConfig:
    """The recipe for so many training pictures."""
    return RECIPES["few" if pictures < FEW_PICTURES else "many"]
