"""How many channels every group keeps, so that a cost target is met with the least importance lost."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevision.errors import UsageError
from edgevision.pruning.groups import ChannelGroups
from edgevision.pruning.macs import Cost
from edgevision.pruning.rounding import DEFAULT_MULTIPLE, legal_counts, round_count
from edgevision.registry import unknown_name

Scores = Mapping[str, npt.NDArray[np.float64]]

SCOPES = ("measured", "global", "uniform")

# the largest fraction of a group that is removed
MOST = 0.9

# a uniform ratio is found to this fraction of the channels; rounding to multiples is far coarser
_RATIO_STEPS = 1000

# measured latencies fall in stairs: a step that saves nothing may lead to one that does
_LOOK_AHEAD = 4


def plan_counts(
    groups: ChannelGroups,
    scores: Scores,
    cost: Cost,
    *,
    target: float,
    scope: str = "global",
    multiple: int = DEFAULT_MULTIPLE,
    most: float = MOST,
    curves: Scores | None = None,
) -> dict[str, int]:
    """Channels to keep in every group, so that ``cost`` of them is at most ``target``.

    ``global`` gives up, again and again, the channels with the least importance for the cost they save, in steps of
    the legal counts. ``measured`` does the same with the growth of the loss in the place of sums of importance.
    ``uniform`` takes the same fraction of every group. All follow from their arguments alone.

    Args:
        groups: what can be pruned.
        scores: group → importance of each channel, comparable between groups where the scope is global.
        cost: of counts: group → channels; e.g. `CostModel.macs`, or a sum over a table of measured latencies.
        target: in the units of ``cost``.
        scope: ``measured``, ``global`` or ``uniform``.
        multiple: channels stay multiples of this.
        most: the largest fraction of a group that is removed.
        curves: for ``measured``, see `edgevision.pruning.loss_curves.loss_curves`: group → growth of the loss by the
            number of channels kept.

    Raises:
        UsageError: an unknown scope, ``measured`` without curves, or a target that cannot be reached; the message says
            what can.
    """
    if scope not in SCOPES:
        raise UsageError(unknown_name("scope", scope, SCOPES))
    choices = {
        group.name: [count for count in legal_counts(group, multiple) if count >= group.channels * (1 - most)]
        for group in groups
    }
    full, least = groups.counts(), {name: legal[0] for name, legal in choices.items()}
    if cost(full) <= target:
        return full
    if cost(least) > target:
        raise UsageError(
            f"the target is {target / cost(full):.1%} of what the network costs now; with channels in multiples of "
            f"{multiple} and at most {most:.0%} of a group removed, {cost(least) / cost(full):.1%} is the least that "
            "can be reached. Give a larger ratio, or a smaller multiple (--round-to)"
        )
    if scope == "uniform":
        return _uniform(groups, choices, cost, target, multiple)
    if scope == "measured" and curves is None:
        raise UsageError("scope 'measured' needs the measured curves of the groups")
    worth = _worth(scores, choices)
    if scope == "measured" and curves is not None:
        worth = {name: -np.asarray(curve) for name, curve in curves.items()}
    return _refilled(worth, choices, _greedy(worth, choices, cost, target), cost, target)


def _uniform(
    groups: ChannelGroups, choices: Mapping[str, list[int]], cost: Cost, target: float, multiple: int
) -> dict[str, int]:
    def counts(step: int) -> dict[str, int]:
        share = step / _RATIO_STEPS
        return {
            group.name: max(choices[group.name][0], round_count(group, share * group.channels, multiple))
            for group in groups
        }

    low, high = 0, _RATIO_STEPS  # counts grow with the step, so bisection finds the largest that fits
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(counts(middle)) <= target else (low, middle)
    return counts(low)


def _worth(scores: Scores, choices: Mapping[str, list[int]]) -> Scores:
    """Importance of the channels that remain when so many are kept: sums over the greatest."""
    return {name: np.concatenate([[0.0], np.cumsum(np.sort(scores[name])[::-1])]) for name in choices}


def _greedy(worth: Scores, choices: Mapping[str, list[int]], cost: Cost, target: float) -> dict[str, int]:
    counts = {name: legal[-1] for name, legal in choices.items()}
    now = cost(counts)

    def offer(name: str) -> tuple[float, int] | None:
        """Importance lost for each unit of cost saved by the next step of a group, and the count after it."""
        best: tuple[float, int] | None = None
        for count in [count for count in choices[name] if count < counts[name]][-_LOOK_AHEAD:]:
            saved = now - cost({**counts, name: count})
            lost = float(worth[name][counts[name]] - worth[name][count])
            price = lost / saved if saved > 0 else float("inf")
            if best is None or price <= best[0]:  # of equals the smallest step
                best = (price, count)
        return best

    # offers grow stale as neighbours shrink (a step saves less then); the best is looked at again before it is taken
    heap = [(found[0], name) for name in choices if (found := offer(name))]
    heapq.heapify(heap)
    while now > target and heap:
        _, name = heapq.heappop(heap)
        found = offer(name)
        if found is None:
            continue
        if heap and found[0] > heap[0][0]:
            heapq.heappush(heap, (found[0], name))
            continue
        counts[name] = found[1]
        now = cost(counts)
        if again := offer(name):
            heapq.heappush(heap, (again[0], name))
    return counts


def _refilled(
    worth: Scores, choices: Mapping[str, list[int]], counts: dict[str, int], cost: Cost, target: float
) -> dict[str, int]:
    """Give back what still fits below the target: the last step of a wide group may have saved more than it had to."""
    while True:
        now, best = cost(counts), None
        for name, legal in choices.items():
            above = next((count for count in legal if count > counts[name]), None)
            if above is None:
                continue
            price = cost({**counts, name: above})
            if price <= target:
                gained = float(worth[name][above] - worth[name][counts[name]])
                value = gained / (price - now) if price > now else float("inf")
                if best is None or value > best[0]:
                    best = (value, name, above)
        if best is None:
            return counts
        counts = {**counts, best[1]: best[2]}


def choose_channels(scores: Scores, counts: Mapping[str, int]) -> dict[str, list[int]]:
    """The most important channels of every group, ascending; of equals the first.

    Args:
        scores: group → importance of each channel.
        counts: group → how many stay; groups that are not named are left out.
    """
    chosen = {}
    for name, count in counts.items():
        order = np.argsort(-np.asarray(scores[name], np.float64), kind="stable")
        chosen[name] = sorted(int(channel) for channel in order[:count])
    return chosen


def counts_of_ratios(groups: ChannelGroups, ratios: Mapping[str, float], multiple: int) -> dict[str, int]:
    """Channels to keep where a given fraction of named groups is removed.

    Raises:
        UsageError: an unknown group, a ratio outside (0, 1), or one that would empty a layer.
    """
    counts = {}
    for name, ratio in ratios.items():
        group = groups[name]
        check_ratio(ratio, f"the ratio of {name}")
        if round(group.channels * (1 - ratio)) < 1:
            raise UsageError(
                f"a ratio of {ratio:g} would leave {name} without channels: it has {group.channels}, so at most "
                f"{1 - 1 / group.channels:.4g} can go"
            )
        counts[name] = round_count(group, group.channels * (1 - ratio), multiple)
    return counts


def check_ratio(value: Any, what: str) -> float:
    """A ratio as a float.

    Raises:
        UsageError: not a number above 0 and below 1.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise UsageError(f"{what} must be above 0 and below 1; got {value!r}")
    return float(value)
