"""k-means in one dimension: the values that weights share."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_MOST_STEPS = 100


def kmeans(values: npt.NDArray[Any], count: int) -> npt.NDArray[np.float32]:
    """Centroids of ``values``, by Lloyd's steps from centroids spread evenly over the range.

    Linear initialization keeps centroids for the few large weights, which matter more than their number says.
    Sorted values make a step a search for the borders and a difference of running sums, so it takes time by the
    number of centroids, not of weights.

    Source: Han et al., Deep Compression, arXiv 1510.00149, sections 3.1 and 3.2.

    Args:
        values: any shape, finite.
        count: how many; fewer come back where values are fewer or some centroid serves none.

    Returns:
        float32 ``[k]``, ascending, k ≤ ``count``.
    """
    ordered = np.sort(np.asarray(values, np.float64).ravel())
    distinct = np.unique(ordered)
    if len(distinct) <= count:
        return distinct.astype(np.float32)
    sums, squares = (np.concatenate([[0.0], np.cumsum(power)]) for power in (ordered, ordered**2))
    centroids = np.linspace(ordered[0], ordered[-1], count)
    near = 1e-7 * (ordered[-1] - ordered[0])
    for _ in range(_MOST_STEPS):
        borders = np.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2)
        edges = np.concatenate([[0], borders, [len(ordered)]])
        members = np.diff(edges)
        served = members > 0
        means = np.diff(sums[edges])[served] / members[served]
        spread = np.maximum(np.diff(squares[edges])[served] / members[served] - means**2, 0.0)
        moved = _split(means, spread, members[served], count - len(means))
        still = len(moved) == len(centroids) and bool(np.abs(moved - centroids).max() <= near)
        centroids = moved
        if still:
            break
    return np.unique(centroids.astype(np.float32))


def _split(
    means: npt.NDArray[np.float64], spread: npt.NDArray[np.float64], members: npt.NDArray[np.int64], missing: int
) -> npt.NDArray[np.float64]:
    """Clusters' means, those with most error in two: a centroid that serves no value is put where it is needed."""
    worst = np.argsort(-spread * members, kind="stable")[:missing]
    apart = np.sqrt(spread[worst])
    parted = np.concatenate([np.delete(means, worst), means[worst] - apart, means[worst] + apart])
    return np.sort(parted)


def nearest(values: npt.NDArray[Any], centroids: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Index of the nearest of ascending ``centroids`` (at most 256) for every value, in the shape of ``values``."""
    middle = (centroids[1:].astype(np.float64) + centroids[:-1]) / 2
    return np.searchsorted(middle, values).astype(np.uint8)
