"""An exact knapsack: a level for each item, by dynamic programming."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BUCKETS = 10_000

Levels = tuple[int, ...]
"""The index of the chosen level of each item."""

_Numbers = NDArray[np.float64]


def choose_levels(
    values: Sequence[Sequence[float]],
    weights: Sequence[Sequence[float]],
    limit: float,
    *,
    buckets: int = BUCKETS,
) -> Levels | None:
    r"""Choose a level for each item so that the values are least and the weights fit a limit.

    .. math:: \min_l \sum_i v_{i, l_i} \quad \text{such that} \quad \sum_i w_{i, l_i} \le W

    This is the problem of SPDY, where items are layers and levels are sparsities: Frantar &
    Alistarh, "SPDY" (2022), https://arxiv.org/abs/2201.13096. The dynamic program goes through the
    items. It keeps the sums that no other sum beats in both value and weight (Nemhauser & Ullmann,
    1969). As long as these are at most ``buckets`` sums, the choice is the best.

    Otherwise, the room between the least weights and the limit is divided into buckets, and only
    the sum of the least value in each bucket is kept. Then the choice is at least as good as the
    best choice for a limit that is smaller by a bucket for each item.

    Args:
        values: The value of each level of each item; the sum is made least.
        weights: The weight of each level of each item, in the unit of the limit. A level with a
            value or a weight that is not finite is not chosen.
        limit: The largest sum of the weights.
        buckets: Number of buckets, at least 1.

    Returns:
        The index of the chosen level of each item; None if no choice fits the limit.

    Examples:
        >>> losses = [[0.0, 1.0, 5.0], [0.0, 2.0, 3.0]]
        >>> parameters = [[100, 50, 10], [200, 100, 20]]
        >>> choose_levels(losses, parameters, 210), choose_levels(losses, parameters, 120)
        ((0, 1), (0, 2))
        >>> choose_levels(losses, parameters, 29) is None
        True
    """
    choices = [_find_choices(*pair) for pair in zip(values, weights, strict=True)]
    if not all(map(len, choices)):
        return None
    least = [min(item[level] for level in of) for item, of in zip(weights, choices, strict=True)]
    room = limit - math.fsum(least)
    if room < 0:
        return None
    extra = [
        np.array([item[level] - base for level in of], dtype=np.float64)
        for item, base, of in zip(weights, least, choices, strict=True)
    ]
    items = [np.array([item[n] for n in of]) for item, of in zip(values, choices, strict=True)]
    chosen = _solve(items, extra, room, buckets)
    return tuple(of[level] for of, level in zip(choices, chosen, strict=True))


def _find_choices(values: Sequence[float], weights: Sequence[float]) -> list[int]:
    """Return the levels that can be chosen."""
    pairs = enumerate(zip(values, weights, strict=True))
    return [level for level, pair in pairs if all(map(math.isfinite, pair))]


def _solve(
    values: Sequence[_Numbers], weights: Sequence[_Numbers], room: float, buckets: int
) -> list[int]:
    """Return the levels with the least sum of values among those whose weights fit the room."""
    value, weight = np.zeros(1), np.zeros(1)
    steps: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
    for of_item, heavy in zip(values, weights, strict=True):
        before = len(value)
        sums = (of_item[:, None] + value).ravel()
        loads = (heavy[:, None] + weight).ravel()
        kept = _keep_unbeaten(sums, loads, room, buckets)
        value, weight = sums[kept], loads[kept]
        steps.append((kept // before, kept % before))
    levels, place = [], len(value) - 1  # unbeaten sums are ordered: the last has the least value
    for level, earlier in reversed(steps):
        levels.append(int(level[place]))
        place = int(earlier[place])
    return levels[::-1]


def _keep_unbeaten(sums: _Numbers, loads: _Numbers, room: float, buckets: int) -> NDArray[np.intp]:
    """Return the indices of the sums that no lighter sum matches in value, the lightest first."""
    order = np.lexsort((sums, loads))
    order = order[loads[order] <= room]
    lowest = np.minimum.accumulate(sums[order])
    order = order[np.diff(lowest, prepend=np.inf) < 0]
    if len(order) <= buckets:
        return order
    bucket = np.floor(loads[order] / room * buckets)
    return order[np.diff(bucket, append=np.inf) > 0]
