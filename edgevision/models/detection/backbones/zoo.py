"""A classifier of the zoo as a detector's backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

from torch import Tensor, nn

from edgevision.errors import UsageError


class Pyramid(Protocol):
    """A network that offers its maps at strides 4, 8, 16 and 32."""

    @property
    def pyramid_channels(self) -> tuple[int, ...]:
        """Of the maps."""
        ...

    def pyramid(self, x: Tensor) -> tuple[Tensor, ...]:
        """float [B, C, H, W] → the maps."""
        ...


class ZooBackbone(nn.Module):
    """The maps of a classifier at strides 4, 8, 16 and 32; what comes after them is taken off.

    Args:
        network: with ``pyramid``; it is changed. Its parameters keep their names under ``network.``.
        name: of the network, for messages.

    Raises:
        UsageError: the network has no pyramid.
    """

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        if not hasattr(network, "pyramid"):
            raise UsageError(f"{name} offers no maps for a detector (no `pyramid`); take a MobileNet, RepVGG, …")
        for part in ("linear", "classifier"):
            if hasattr(network, part):
                delattr(network, part)
        ends = cast("Sequence[int] | None", getattr(network, "stage_ends", None))
        if ends is not None:
            network.features = cast("nn.Sequential", network.features)[: ends[-1] + 1]
        self.network = network

    @property
    def channels(self) -> tuple[int, ...]:
        """Of the maps, as they are now."""
        return cast("Pyramid", self.network).pyramid_channels

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """float [B, C, H, W] → maps at strides 4, 8, 16 and 32."""
        return cast("Pyramid", self.network).pyramid(x)
