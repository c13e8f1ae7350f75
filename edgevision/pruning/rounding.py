"""Channel counts that engines' kernels are quick at: multiples of 8 or 16, as many as one register holds."""

from __future__ import annotations

import math

from edgevision.errors import UsageError
from edgevision.pruning.groups import ChannelGroup

DEFAULT_MULTIPLE = 8


def legal_counts(group: ChannelGroup, multiple: int = DEFAULT_MULTIPLE) -> list[int]:
    """Counts that a group may keep, ascending; the last is all of its channels.

    The layer that makes the channels then has a multiple of ``multiple``, or what it has now. A group with fewer
    channels than that can only stay whole. Where grouped layers tie several channels to each channel of the group, the
    layer's own count is the one that is rounded.

    Args:
        group: from `edgevision.pruning.find_groups`.
        multiple: 1 for any count.

    Raises:
        UsageError: a multiple below 1.
    """
    if multiple < 1:
        raise UsageError(f"channels are rounded to a multiple of 1 or more; got {multiple}")
    step = multiple // math.gcd(multiple, group.width)
    return [*range(step, group.channels, step), group.channels]


def round_count(group: ChannelGroup, wanted: float, multiple: int = DEFAULT_MULTIPLE) -> int:
    """The legal count nearest to ``wanted``; of two as near the larger."""
    return min(legal_counts(group, multiple), key=lambda count: (abs(count - wanted), -count))
