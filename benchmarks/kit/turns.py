"""Times of calls that take turns, so that a slow moment of the machine meets all of them."""

import contextlib
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

CONFIDENCE = 0.95
LEAST_BLOCKS = 6  # fewer give no interval of this confidence
BLOCK_SECONDS = 0.01  # much longer than the resolution of the clock, much shorter than a drift
WARM_UP = 3  # calls

Call = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class PairedTimes:
    r"""The times of two calls, in pairs of neighboring blocks.

    A drift of the machine changes both blocks of a pair, and so leaves their ratio alone. The
    interval of the sign test encloses the median ratio of :math:`b` pairs:

    .. math:: [r_{(k)}, r_{(b + 1 - k)}], \quad P(X < k) \le 0.025, \quad X \sim B(b, 1/2).

    It assumes no distribution (Conover, "Practical Nonparametric Statistics", section 3.2).

    Args:
        first: Median seconds of the first call.
        second: Median seconds of the second call.
        speedup: Median of the ratios: the first time over the second time.
        low: Lower end of the 95 % interval.
        high: Upper end of the interval.
    """

    first: float
    second: float
    speedup: float
    low: float
    high: float

    @property
    def interval(self) -> str:
        """The speedup with the interval, as a table shows it."""
        return f"{self.speedup:.2f} ({self.low:.2f}-{self.high:.2f})"


def time_call(call: Call, calls: int = 1) -> float:
    """Return the mean seconds of a call, over several calls in a row."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def take_turns(calls: Mapping[str, Call], turns: int) -> dict[str, list[float]]:
    """Return the seconds of each call, by name; each turn makes every call once."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            times[name].append(time_call(call))
    return times


def time_pairs(first: Call, second: Call, blocks: int) -> PairedTimes:
    """Time blocks of calls in pairs; the call that comes first alternates.

    Args:
        first: The first call.
        second: The second call.
        blocks: Number of pairs of blocks, at least 6.

    Raises:
        ValueError: If there are fewer than 6 pairs.
    """
    if blocks < LEAST_BLOCKS:
        raise ValueError(f"need blocks >= {LEAST_BLOCKS}, got blocks={blocks}")
    both = (first, second)
    for call in both * WARM_UP:
        call()
    fastest = min(time_call(call) for call in both)
    calls = max(1, math.ceil(BLOCK_SECONDS / max(fastest, 1e-9)))
    times: tuple[list[float], list[float]] = ([], [])
    with _without_collection():
        for block in range(blocks):
            for index in (0, 1) if block % 2 == 0 else (1, 0):
                times[index].append(time_call(both[index], calls))
    return compare_pairs(*times)


def compare_pairs(first: list[float], second: list[float]) -> PairedTimes:
    """Return the medians and the interval of paired times.

    Examples:
        >>> times = compare_pairs([2.0, 4.0, 6.0, 8.0, 10.0, 12.0], [1.0, 2.0, 2.0, 2.0, 2.0, 2.0])
        >>> times.speedup, times.low, times.high
        (3.5, 2.0, 6.0)
    """
    ratios = sorted(a / b for a, b in zip(first, second, strict=True))
    rank = rank_of_interval(len(ratios))
    return PairedTimes(
        first=statistics.median(first),
        second=statistics.median(second),
        speedup=statistics.median(ratios),
        low=ratios[rank - 1],
        high=ratios[-rank],
    )


def rank_of_interval(number: int) -> int:
    """Return the rank k: the k-th least and the k-th greatest of all values enclose their median.

    Examples:
        >>> [rank_of_interval(number) for number in (6, 10, 51)]
        [1, 2, 19]
    """
    tail, rank = 0.0, 0
    while True:
        tail += math.comb(number, rank) / 2**number
        if tail > (1 - CONFIDENCE) / 2:
            return rank
        rank += 1


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Keep Python from collecting garbage in the middle of a block."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
