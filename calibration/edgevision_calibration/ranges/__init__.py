"""Range methods: pure functions from a `Histogram` to the interval that is kept, everything beyond being clipped."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Protocol

from edgevision.registry import Registry
from edgevision_calibration.histogram import Histogram


class RangeMethod(Protocol):
    """Chooses what interval of a tensor the integers span."""

    def __call__(self, histogram: Histogram, *, symmetric: bool) -> tuple[float, float]:
        """Return ``(low, high)`` with low <= 0 <= high; ``low = −high`` where ``symmetric``."""
        ...


RANGE_METHODS = Registry(
    "range method",
    "edgevision.ranges",
    {
        "minmax": "edgevision_calibration.ranges.minmax:minmax_range",
        "percentile": "edgevision_calibration.ranges.percentile:percentile_range",
        "entropy": "edgevision_calibration.ranges.entropy:entropy_range",
        "mse": "edgevision_calibration.ranges.mse:mse_range",
        "moving_average": "edgevision_calibration.ranges.moving_average:moving_average_range",
    },
)

DEFAULT_METHOD = "mse"


def range_method(ranges: str | Mapping[str, str], tensor: str) -> RangeMethod:
    """The method for one tensor: the one for all, or its own in ``ranges`` and `DEFAULT_METHOD` where it has none.

    Raises:
        UsageError: no such method.
    """
    return _resolved(ranges if isinstance(ranges, str) else ranges.get(tensor, DEFAULT_METHOD))


@cache
def _resolved(name: str) -> RangeMethod:
    # asked once for every tensor: a look-up of the installed entry points each time would cost more than the ranges
    method: RangeMethod = RANGE_METHODS.resolve(name)
    return method
