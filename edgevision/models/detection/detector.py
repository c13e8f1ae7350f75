"""`Detector`: backbone, neck and head in a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor, nn

from edgevision.errors import UsageError

if TYPE_CHECKING:
    from edgevision.detection.postprocess import Postprocess


class Head(Protocol):
    """What a detector's last part offers besides being a module."""

    kind: str
    strides: tuple[int, ...]
    num_classes: int

    def __call__(self, maps: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Maps of the neck → raw maps by name."""
        ...

    def set_priors(self) -> None:
        """Weights and biases of the last convolutions before training."""
        ...

    def decoder_options(self) -> dict[str, Any]:
        """Literal settings of the decoder named ``kind``, as they stand in a bundle's manifest."""
        ...


class Detector(nn.Module):
    """Pictures float [B, C, H, W] → raw maps of the head by name, the same in training and in eval mode.

    The last convolutions are the outputs; boxes are decoded from them in numpy (`edgevision.detection`), so that
    neither sigmoids nor box sizes pass through integers. Names and shapes are told by the class of the head.

    Args:
        backbone: picture → tuple of maps.
        neck: tuple of maps → tuple of maps, one per level of the head.
        head: tuple of maps → named raw maps.
        size_multiple: height and width of the input must be multiples of it.
    """

    task: ClassVar[str] = "detection"

    def __init__(self, backbone: nn.Module, neck: nn.Module, head: Any, *, size_multiple: int = 32) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.size_multiple = size_multiple

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the head's levels, in the order of its outputs."""
        return tuple(self.head.strides)

    @property
    def num_classes(self) -> int:
        """Things that can be found."""
        return int(self.head.num_classes)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """float [B, C, H, W] → raw maps by name.

        Raises:
            UsageError: height or width is no multiple of the largest stride.
        """
        check_input_size(x.shape[-2], x.shape[-1], self.size_multiple)
        outputs: dict[str, Tensor] = self.head(self.neck(self.backbone(x)))
        return outputs

    def postprocess(self, confidence: float = 0.25) -> Postprocess:
        """How its outputs become boxes; `dataclasses.replace` changes the thresholds."""
        from edgevision.detection.postprocess import Postprocess

        return Postprocess(decoder=str(self.head.kind), options=self.head.decoder_options(), confidence=confidence)


def check_input_size(height: int, width: int, multiple: int) -> None:
    """Raise `UsageError`, which names the near sizes, unless both are multiples of ``multiple``."""
    if height % multiple == 0 and width % multiple == 0:
        return
    sides = [height] if height == width else [height, width]
    # the multiple below, where there is one, and the one above
    near = [sorted({max(multiple, side // multiple * multiple), -(-side // multiple) * multiple}) for side in sides]
    choices = " by ".join(" or ".join(map(str, values)) for values in near)
    sizes = " × ".join(map(str, sides))
    raise UsageError(
        f"the detector takes pictures whose height and width are multiples of {multiple} pixels; got {sizes}: "
        f"use {choices}"
    )
