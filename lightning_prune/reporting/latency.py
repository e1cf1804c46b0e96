"""Which of two is faster, measured in turns and judged with doubt."""

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Literal

import numpy as np

Verdict = Literal["faster", "no faster", "slower"]

MARGIN = 0.1
WARM_UP = 3
LEAST_BLOCKS = 6  # with fewer no interval of medians has this confidence

_CONFIDENCE = 0.95
_BLOCK_SECONDS = 0.01  # much longer than the clock's resolution, much shorter than drifts


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Seconds that one call took, over the blocks.

    Args:
        median: Half of the blocks were faster.
        lower: The first quartile.
        upper: The third quartile.
    """

    median: float
    lower: float
    upper: float


@dataclass(frozen=True, kw_only=True)
class Latency:
    r"""What was measured of a dense and a pruned module that took turns in short blocks.

    The ratio of one pair of neighbouring blocks is free of what changes more slowly, as a clock or
    other programs on the machine. Its median over the pairs has the interval of the sign test,

    .. math:: [r_{(k)}, r_{(b + 1 - k)}], \quad P(X < k) \le 0.025, \quad X \sim B(b, 1/2),

    which assumes nothing of how times are distributed (Conover, "Practical Nonparametric
    Statistics", section 3.2).

    Args:
        runtime: Where it ran, ``"torch"`` or ``"ONNX Runtime"``.
        device: On what.
        threads: Number of threads that one operation may use on CPU.
        blocks: Number of pairs of blocks, :math:`b`.
        calls: Number of calls in each block, whose mean is the block's time.
        warm_up: Number of calls of each before.
        dense: Times of the dense module.
        pruned: Times of the pruned one.
        speedup: Median of the ratios dense time over pruned time.
        low: Lower end of its 95 % interval.
        high: Upper end.
    """

    runtime: str
    device: str
    threads: int
    blocks: int
    calls: int
    warm_up: int
    dense: Spread
    pruned: Spread
    speedup: float
    low: float
    high: float

    @property
    def verdict(self) -> Verdict:
        """``"faster"`` or ``"slower"``, if the interval lies beyond 1 and the ratio beyond 1.1.

        A smaller difference is ``"no faster"`` even if it is certain: two copies of one network can
        differ as much by where they lie in memory, and another process would find another winner.
        """
        if self.low > 1 and self.speedup > 1 + MARGIN:
            return "faster"
        if self.high < 1 and self.speedup < 1 / (1 + MARGIN):
            return "slower"
        return "no faster"


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Two that are to take turns.

    Args:
        runtime: Where they run.
        device: On what.
        threads: Number of threads that one operation may use.
        dense: Calls the dense one and waits for it.
        pruned: Calls the pruned one and waits for it.
    """

    runtime: str
    device: str
    threads: int
    dense: Callable[[], object]
    pruned: Callable[[], object]


def measured(contest: Contest, blocks: int, on_block: Callable[[], object]) -> Latency:
    """Let the two take turns; which of them comes first alternates, too.

    Args:
        contest: The two.
        blocks: Number of pairs of blocks, at least 6.
        on_block: Called after each pair.
    """
    both = (contest.dense, contest.pruned)
    for call in both * WARM_UP:
        call()
    fastest = min(_seconds(call, 1) for call in both)
    calls = max(1, math.ceil(_BLOCK_SECONDS / max(fastest, 1e-9)))
    times: tuple[list[float], list[float]] = ([], [])
    with _no_collection():
        for block in range(blocks):
            for index in (0, 1) if block % 2 == 0 else (1, 0):
                times[index].append(_seconds(both[index], calls))
            on_block()
    return compared(contest, times[0], times[1], calls)


def compared(
    contest: Contest, dense: Sequence[float], pruned: Sequence[float], calls: int
) -> Latency:
    """Return what the times of paired blocks say."""
    ratios = sorted(a / b for a, b in zip(dense, pruned, strict=True))
    rank = rank_of_interval(len(ratios))
    return Latency(
        runtime=contest.runtime,
        device=contest.device,
        threads=contest.threads,
        blocks=len(ratios),
        calls=calls,
        warm_up=WARM_UP + 1,
        dense=_spread(dense),
        pruned=_spread(pruned),
        speedup=median(ratios),
        low=ratios[rank - 1],
        high=ratios[-rank],
    )


def rank_of_interval(number: int) -> int:
    """Return k: the k-th least and the k-th greatest of that many values enclose their median.

    Examples:
        >>> [rank_of_interval(number) for number in (6, 10, 51)]
        [1, 2, 19]
    """
    tail, rank = 0.0, 0
    while True:
        tail += math.comb(number, rank) / 2**number
        if tail > (1 - _CONFIDENCE) / 2:
            return rank
        rank += 1


def _spread(seconds: Sequence[float]) -> Spread:
    lower, middle, upper = np.quantile(seconds, [0.25, 0.5, 0.75])
    return Spread(median=float(middle), lower=float(lower), upper=float(upper))


def _seconds(call: Callable[[], object], calls: int) -> float:
    """Return the mean time of one of some calls in a row."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python from collecting garbage in the middle of a block."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
