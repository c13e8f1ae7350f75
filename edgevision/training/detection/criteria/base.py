"""What all criteria have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from edgevision.errors import ModelError
from edgevision.training.detection.targets import Targets


class Criterion(ABC):
    """A detector's loss.

    Called with the detector's raw maps, by their names, in whatever precision they were computed; with `Targets`, of
    which pictures may have none; and with the epoch, from 0. It returns ``"loss"``, a float32 scalar to
    backpropagate, and beside it the parts that it is the sum of, weighed already and without gradient, to be shown.
    """

    def __call__(self, outputs: Mapping[str, Tensor], targets: Targets, epoch: int = 0) -> dict[str, Tensor]:
        """The loss and its parts.

        Raises:
            ModelError: the detector has other outputs than its head's kind has.
        """
        missing = [name for name in self.names if name not in outputs]
        if missing:
            raise ModelError(
                f"{type(self).__name__} needs the detector's outputs {', '.join(self.names)}; it has "
                f"{', '.join(outputs)}"
            )
        maps = {name: outputs[name] for name in self.names}
        device = next(iter(maps.values())).device
        # sums of thousands of small terms, and differences of nearly equal boxes, need more than 8 bits
        with torch.autocast(device.type, enabled=False):
            parts = self.parts({name: value.float() for name, value in maps.items()}, targets.learnable(device), epoch)
            loss = torch.stack(list(parts.values())).sum()
        return {"loss": loss, **{name: part.detach() for name, part in parts.items()}}

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The outputs of the detector that are looked at."""

    @abstractmethod
    def parts(self, outputs: dict[str, Tensor], targets: Targets, epoch: int) -> dict[str, Tensor]:
        """The parts that add up to the loss: float32 scalars with gradients, from float32 maps."""
