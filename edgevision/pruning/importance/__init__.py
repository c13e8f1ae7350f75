"""How much each channel of a group matters: a registry of measures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from edgevision.errors import ModelError
from edgevision.pruning.groups import ChannelGroup, ChannelGroups
from edgevision.pruning.losses import Labels, Loss, classification_loss
from edgevision.registry import Registry

FloatArray = npt.NDArray[np.float64]

# entries take (model, groups, data) and return group → float64 [channels], larger where a channel matters more
IMPORTANCES = Registry(
    "importance",
    "edgevision.importances",
    {
        "bn": "edgevision.pruning.importance.bn_scale:bn_scale",
        "fpgm": "edgevision.pruning.importance.fpgm:fpgm",
        "l1": "edgevision.pruning.importance.magnitude:l1",
        "l2": "edgevision.pruning.importance.magnitude:l2",
        "random": "edgevision.pruning.importance.random:random",
        "taylor": "edgevision.pruning.importance.taylor:taylor",
    },
)

# those that look at data; the others look at weights alone
NEEDS_DATA = frozenset({"taylor"})


@dataclass(frozen=True)
class ScoringData:
    """What a measure may look at besides the weights.

    Attributes:
        batches: pairs of inputs float32 [B, C, H, W] and labels, see `edgevision.pruning.losses`.
        seed: of the random control.
        loss: of a network's answers and labels.
    """

    batches: Sequence[tuple[Tensor, Labels]] = field(default_factory=list)
    seed: int = 0
    loss: Loss = classification_loss


Measure = Callable[[nn.Module, Iterable[ChannelGroup], ScoringData], dict[str, FloatArray]]


def score_groups(
    model: nn.Module, groups: ChannelGroups, importance: str = "l2", data: ScoringData | None = None
) -> dict[str, FloatArray]:
    """Importance of every channel of every group.

    Args:
        model: the network; neither its weights nor its gradients are changed.
        groups: found in it.
        importance: a name in `IMPORTANCES`.
        data: for those that need it.

    Returns:
        group → float64 [channels].

    Raises:
        UsageError: an unknown measure, or one that needs what the network or the data do not have.
        ModelError: weights that are not finite.
    """
    measure: Measure = IMPORTANCES.resolve(importance)
    scores = measure(model, groups, data or ScoringData())
    for name, values in scores.items():
        if not np.isfinite(values).all():
            raise ModelError(f"{name}: its weights or gradients are not finite; the network cannot be scored")
    return scores
