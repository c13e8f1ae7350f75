"""Structured pruning: channels that belong together are found, scored, chosen and removed.

::

    groups = find_groups(model, (1, 3, 32, 32))              # what can be cut, and what must stay and why
    scores = score_groups(model, groups, "l2")               # group → importance of each of its channels
    costs = CostModel.of(model, groups)                      # MACs and parameters of every layer at any counts
    counts = plan_counts(groups, scores, costs.macs, target=0.5 * costs.macs(groups.counts()))
    smaller = remove_channels(model, groups, choose_channels(scores, counts))   # a copy

`prune` is these five lines in one call. ``plan_counts`` takes any function of the counts as cost, so a table of
measured latencies can take the place of the MACs; ``CostModel.layers`` says for every convolution and linear layer how
many channels it has at given counts (`LayerShape.at`) and its geometry.

The pieces, one file each: `groups` (plain data, by module names), `dependency` (torch-pruning's graph → groups,
proved by running them), `importance` (a registry), `rounding`, `planning`, `loss_curves` (what `planning` compares
groups by in the scope ``measured``), `apply`, `macs`, `sensitivity`, `slimming`, `sparsity`, `prune`.
"""

from __future__ import annotations

from edgevision.dependencies import require

# one line that names the extra, before a module of this room fails on its own import
require("torch", purpose="prune")
require("torch_pruning", purpose="prune")

from edgevision.pruning.apply import remove_channels  # noqa: E402 - after the check above
from edgevision.pruning.dependency import find_groups  # noqa: E402
from edgevision.pruning.groups import ChannelGroup, ChannelGroups, KeptGroup, Member  # noqa: E402
from edgevision.pruning.importance import IMPORTANCES, ScoringData, score_groups  # noqa: E402
from edgevision.pruning.macs import CostModel, LayerShape  # noqa: E402
from edgevision.pruning.planning import choose_channels, plan_counts  # noqa: E402
from edgevision.pruning.prune import prune  # noqa: E402
from edgevision.pruning.rounding import legal_counts  # noqa: E402

__all__ = [
    "IMPORTANCES",
    "ChannelGroup",
    "ChannelGroups",
    "CostModel",
    "KeptGroup",
    "LayerShape",
    "Member",
    "ScoringData",
    "choose_channels",
    "find_groups",
    "legal_counts",
    "plan_counts",
    "prune",
    "remove_channels",
    "score_groups",
]
