"""An exact knapsack: a level for each item, by dynamic programming."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BUCKETS = 10_000

Levels = tuple[int, ...]
"""The index of the chosen level of each item."""


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
    Alistarh, "SPDY" (2022), https://arxiv.org/abs/2201.13096. The dynamic program counts weights in
    buckets. It takes items x levels x buckets additions. Each weight above the least of an item is
    rounded up to whole buckets, so the choice always fits the limit.

    If the weights above the least are whole numbers, and the limit leaves at most ``buckets`` of
    them, then a bucket is 1, and the choice is the best. Otherwise a bucket is the room above the
    least weights, divided by ``buckets``. Then the choice is at least as good as the best choice
    for a limit that is smaller by a bucket for each item.

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
    steps, size = _count_steps(extra, room, buckets)
    items = [np.array([item[n] for n in of]) for item, of in zip(values, choices, strict=True)]
    chosen = _solve(items, steps, size)
    return tuple(of[level] for of, level in zip(choices, chosen, strict=True))


def _find_choices(values: Sequence[float], weights: Sequence[float]) -> list[int]:
    """Return the levels that can be chosen."""
    pairs = enumerate(zip(values, weights, strict=True))
    return [level for level, pair in pairs if all(map(math.isfinite, pair))]


def _count_steps(
    extra: Sequence[NDArray[np.float64]], room: float, buckets: int
) -> tuple[list[NDArray[np.int64]], int]:
    """Return the weights in buckets, rounded up, and the number of buckets in the room."""
    room = min(room, math.fsum(float(each.max()) for each in extra))
    is_whole = all(bool((each == np.floor(each)).all()) for each in extra)
    if room == 0 or (is_whole and room <= buckets):
        size, bucket = int(room), 1.0
    else:
        size, bucket = buckets, room / buckets
    return [np.ceil(np.minimum(each / bucket, size + 1)).astype(np.int64) for each in extra], size


def _solve(
    values: Sequence[NDArray[np.float64]], steps: Sequence[NDArray[np.int64]], size: int
) -> list[int]:
    """Return the levels with the least sum of values among those whose steps fit the size.

    Of equal sums, the lower level of the later item is chosen.
    """
    best = np.zeros(size + 1)  # the least sum of the items so far, by the buckets they may fill
    taken: list[NDArray[np.intp]] = []
    for of_item, filled in zip(values, steps, strict=True):
        sums = np.full((len(of_item), size + 1), np.inf)
        for level, (value, step) in enumerate(zip(of_item, filled, strict=True)):
            if step <= size:
                sums[level, step:] = best[: size + 1 - step] + value
        taken.append(sums.argmin(axis=0))
        best = sums.min(axis=0)
    levels, room = [], size
    for filled, choice in zip(reversed(steps), reversed(taken), strict=True):
        level = int(choice[room])
        levels.append(level)
        room -= int(filled[level])
    return levels[::-1]
