"""`prune`: a network with fewer channels, in one call and without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from edgevision.errors import UsageError
from edgevision.pruning.apply import remove_channels
from edgevision.pruning.dependency import find_groups
from edgevision.pruning.groups import ChannelGroups
from edgevision.pruning.importance import ScoringData, score_groups
from edgevision.pruning.loss_curves import loss_curves
from edgevision.pruning.losses import Labels, loss_of
from edgevision.pruning.macs import CostModel
from edgevision.pruning.planning import MOST, check_ratio, choose_channels, counts_of_ratios, plan_counts
from edgevision.pruning.rounding import DEFAULT_MULTIPLE


@dataclass(frozen=True)
class PruningPlan:
    """What will be removed, before anything is.

    Attributes:
        groups: of the network.
        counts: group → channels that stay.
        keep: group → which.
        costs: of the network at any counts.
    """

    groups: ChannelGroups
    counts: dict[str, int]
    keep: dict[str, list[int]]
    costs: CostModel

    @property
    def macs_ratio(self) -> float:
        """Multiply-adds that stay, as a fraction."""
        return self.costs.macs(self.counts) / self.costs.macs()

    @property
    def parameters_ratio(self) -> float:
        """Parameters that stay, as a fraction."""
        return self.costs.parameters(self.counts) / self.costs.parameters()

    def apply(self, model: nn.Module) -> nn.Module:
        """The smaller network; ``model`` is not changed."""
        return remove_channels(model, self.groups, self.keep)


def prune(
    model: nn.Module,
    *,
    macs: float | None = None,
    params: float | None = None,
    ratios: Mapping[str, float] | None = None,
    input_shape: Sequence[int] | None = None,
    importance: str | None = None,
    scope: str | None = None,
    round_to: int = DEFAULT_MULTIPLE,
    batches: Sequence[tuple[Tensor, Labels]] = (),
    seed: int = 0,
) -> nn.Module:
    """Remove channels from a network of the zoo or from any module. Its accuracy suffers until it is trained again.

    Args:
        model: it is not changed. Its outputs and inputs stay as they are; so do layers that cannot be followed,
            see `edgevision.pruning.find_groups`, whose ``kept`` names them and says why.
        macs: fraction of the multiply-adds to keep, or
        params: fraction of the parameters to keep, or
        ratios: group → fraction of its channels to remove.
        input_shape: [B, C, H, W]; by default that of the zoo model.
        importance: ``taylor``, ``l1``, ``l2``, ``bn``, ``fpgm`` or ``random``; None for ``taylor`` where there are
            batches, else ``l2``.
        scope: ``measured`` (groups are compared by the loss when they are cut), ``global`` (by the importance of their
            channels) or ``uniform`` (the same fraction of each); None for ``measured`` where there are batches, else
            ``global``.
        round_to: channels stay multiples of this: 8 for most CPUs, 16 for AVX-512 and tensor cores.
        batches: inputs float32 [B, C, H, W] and class indices int64 [B] (or None), for ``taylor`` and ``measured``; of
            detectors boxes, `edgevision.training.detection.targets.Targets`.
        seed: of ``random``.

    Returns:
        a smaller copy in the mode of ``model``. A zoo model's is still one: `Checkpoint` saves it and builds it again.

    Raises:
        UsageError: a ratio outside (0, 1) or that would empty a layer, a target that cannot be reached, an unknown
            name, or not exactly one of ``macs``, ``params`` and ``ratios``.
        ModelError: the network cannot be run or traced.
    """
    return make_plan(
        model, macs=macs, params=params, ratios=ratios, input_shape=input_shape, importance=importance, scope=scope,
        round_to=round_to, data=ScoringData(batches, seed, loss_of(model)),
    ).apply(model)  # fmt: skip


def make_plan(
    model: nn.Module,
    *,
    macs: float | None = None,
    params: float | None = None,
    ratios: Mapping[str, float] | None = None,
    input_shape: Sequence[int] | None = None,
    importance: str | None = None,
    scope: str | None = None,
    round_to: int = DEFAULT_MULTIPLE,
    data: ScoringData | None = None,
) -> PruningPlan:
    """What `prune` would remove; arguments and errors as there."""
    given = {"macs": macs, "params": params, "ratios": ratios}
    wanted = [name for name, value in given.items() if value is not None]
    if len(wanted) != 1:
        raise UsageError(f"say how much to keep with one of macs, params and ratios; got {wanted or 'none of them'}")
    for name in ("macs", "params"):
        if given[name] is not None:
            check_ratio(given[name], f"the ratio of {name} to keep")
    groups = find_groups(model, input_shape or input_shape_of(model))
    if not groups:
        reasons = "; ".join(f"{kept.name}: {kept.reason}" for kept in groups.kept[:3])
        raise UsageError(f"{type(model).__name__} has no channels that could be removed ({reasons})")
    data = data or ScoringData()
    scores = score_groups(model, groups, importance or ("taylor" if data.batches else "l2"), data)
    costs = CostModel.of(model, groups)
    if ratios is not None:
        counts = {**groups.counts(), **counts_of_ratios(groups, ratios, round_to)}
    else:
        cost = costs.macs if macs is not None else costs.parameters
        share = macs if macs is not None else params
        assert share is not None
        scope = scope or ("measured" if data.batches else "global")
        curves = None
        if scope == "measured":
            curves = loss_curves(
                model, groups, scores, data, multiple=round_to, most=MOST, macs=costs.macs()
            )  # fmt: skip
        counts = plan_counts(
            groups, scores, cost, target=share * cost(), scope=scope, multiple=round_to, curves=curves
        )  # fmt: skip
    return PruningPlan(groups, counts, choose_channels(scores, counts), costs)


def input_shape_of(model: Any) -> tuple[int, int, int, int]:
    """[1, C, H, W] of a zoo model.

    Raises:
        UsageError: another module, which does not tell.
    """
    architecture = getattr(model, "architecture", None)
    arguments = architecture.get("arguments", {}) if isinstance(architecture, dict) else {}
    if not {"in_channels", "input_size"} <= set(arguments):
        raise UsageError(f"{type(model).__name__} does not say what its input is: give input_shape=(1, 3, 224, 224)")
    size = int(arguments["input_size"])
    return 1, int(arguments["in_channels"]), size, size
