"""The latencies of two callables, measured in turns and judged by a confidence interval."""

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Literal

import numpy as np

from lightning_prune.models.progress import track_progress
from lightning_prune.tables.table import Cell, Column, Table

Verdict = Literal["faster", "no faster", "slower"]

BLOCKS = 51  # default number of pairs of blocks
THREADS = 1  # default number of threads of an operation
MARGIN = 0.1
WARM_UP = 3
LEAST_BLOCKS = 6  # fewer pairs have no interval with this confidence

_CONFIDENCE = 0.95
_LARGEST_MISS = 0.01  # of the speedup that is asked for
_LONGEST_BLOCK = 0.1  # seconds, so that a callable that is far slower takes no minutes
_BLOCK_SECONDS = 0.01  # much longer than the clock's resolution, much shorter than drifts


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Seconds of a call, over the blocks.

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
    r"""The latencies of a dense and a pruned module that took turns in short blocks.

    Slow changes, as of a clock or of other programs on the machine, cancel in the ratio of two
    neighboring blocks. The median of the ratios has the interval of the sign test,

    .. math:: [r_{(k)}, r_{(b + 1 - k)}], \quad P(X < k) \le 0.025, \quad X \sim B(b, 1/2),

    which assumes no distribution of the times (Conover, "Practical Nonparametric Statistics",
    section 3.2).

    Args:
        runtime: ``"torch"`` or ``"ONNX Runtime"``.
        device: Kind of device, such as ``"cpu"``.
        threads: Number of threads that an operation may use on CPU.
        blocks: Number of pairs of blocks, :math:`b`.
        calls: Number of calls in each block. The time of a block is their mean.
        warm_up: Number of calls of each module before the first block.
        dense: Times of the dense module.
        pruned: Times of the pruned module.
        speedup: Median of the ratios dense time over pruned time.
        low: Lower end of the 95 % interval of the median.
        high: Upper end of the interval.
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
        """``"faster"`` or ``"slower"``, if the interval excludes 1 and the median is beyond 1.1.

        A smaller difference is ``"no faster"`` even if it is certain: two copies of a network can
        differ as much by where they lie in memory, and another process would find another winner.
        """
        if self.low > 1 and self.speedup > 1 + MARGIN:
            return "faster"
        if self.high < 1 and self.speedup < 1 / (1 + MARGIN):
            return "slower"
        return "no faster"

    def contradicts(self, predicted: float, asked: float, largest_error: float) -> bool:
        """Return whether the measurement shows that a predicted speedup has to be corrected.

        That is so in two cases. A correction by less would follow the noise.

        - The prediction is off by more than the largest error, and outside the interval.
        - The model is slower than predicted, and slower than asked, by more than 1 %.

        Args:
            predicted: The predicted speedup.
            asked: The speedup that is asked for at the end.
            largest_error: Fraction by which the prediction may be off, positive.

        Examples:
            >>> contest = Contest(runtime="torch", device="cpu", threads=1, dense=None, pruned=None)
            >>> latency = compare_times(contest, [1.9, 2, 2, 2, 2, 2.05], [1.0] * 6, calls=1)
            >>> latency.speedup, latency.high
            (2.0, 2.05)
            >>> [latency.contradicts(speedup, 1.0, 0.05) for speedup in (1.8, 1.96, 2.09, 2.3)]
            [True, False, False, True]
            >>> [latency.contradicts(2.09, asked, 0.05) for asked in (2.01, 2.04)]
            [False, True]
        """
        is_outside = not self.low <= predicted <= self.high
        is_off = is_outside and abs(predicted / self.speedup - 1) > largest_error
        return is_off or self.speedup < (1 - _LARGEST_MISS) * min(predicted, asked)


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Two callables that are to take turns.

    Args:
        runtime: Name of the runtime.
        device: Kind of device.
        threads: Number of threads that an operation may use.
        dense: Calls the dense module and waits for the result.
        pruned: Calls the pruned module and waits for the result.
    """

    runtime: str
    device: str
    threads: int
    dense: Callable[[], object]
    pruned: Callable[[], object]


def measure_latency(contest: Contest, blocks: int) -> Latency:
    """Let two callables take turns. The first of a pair of blocks alternates, too.

    Args:
        contest: The two callables.
        blocks: Number of pairs of blocks, at least 6.
    """
    both = (contest.dense, contest.pruned)
    for call in both * WARM_UP:
        call()
    calls = _choose_calls([max(_time(call, 1), 1e-9) for call in both])
    times: tuple[list[float], list[float]] = ([], [])
    with _no_garbage_collection():
        stage = f"dense and pruned in turns, {contest.runtime}"
        for block in track_progress(range(blocks), stage):
            for index in (0, 1) if block % 2 == 0 else (1, 0):
                times[index].append(_time(both[index], calls))
    return compare_times(contest, times[0], times[1], calls)


def _choose_calls(seconds: Sequence[float]) -> int:
    """Return how many calls a block has, from the seconds of a call of each callable.

    Examples:
        >>> [_choose_calls(seconds) for seconds in ([0.001, 0.002], [0.001, 1.0], [2.0, 1.0])]
        [10, 1, 1]
    """
    enough = math.ceil(_BLOCK_SECONDS / min(seconds))
    return max(1, min(enough, math.ceil(_LONGEST_BLOCK / max(seconds))))


def compare_times(
    contest: Contest, dense: Sequence[float], pruned: Sequence[float], calls: int
) -> Latency:
    """Return the median ratio of paired times, and the interval of the median.

    Args:
        contest: Where the times were measured.
        dense: Seconds of a call of the dense module, by block.
        pruned: Seconds of a call of the pruned module, by block.
        calls: Number of calls in each block.
    """
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
    """Return k: the k-th smallest and k-th largest of ``number`` values enclose their median.

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


def latency_table(latencies: Sequence[Latency]) -> Table:
    """Return a row for each runtime and module."""
    rows: list[list[Cell]] = []
    for latency in latencies:
        speedup = f"{latency.speedup:.2f} ({latency.low:.2f} to {latency.high:.2f})"
        rows.append([latency.runtime, "dense", *_in_milliseconds(latency.dense), ""])
        rows.append(["", "pruned", *_in_milliseconds(latency.pruned), speedup])
    return Table(
        title="Latency",
        columns=(
            Column(heading="runtime", align="left"),
            Column(heading="module", align="left"),
            Column(heading="median"),
            Column(heading="quartiles"),
            Column(heading="dense / pruned"),
        ),
        rows=rows,
    )


def describe_latency(latency: Latency) -> str:
    """Return the verdict in words: how many times faster or slower, and where."""
    where = f"in {latency.runtime} ({latency.device}, "
    if latency.device == "cpu":
        where += f"{latency.threads} thread{'s' if latency.threads > 1 else ''}, "
    where += f"{latency.blocks} x {latency.calls} calls each, in turns)"
    if latency.verdict == "no faster":
        return f"no faster {where}"
    times = latency.speedup if latency.verdict == "faster" else 1 / latency.speedup
    return f"{times:.2f} times {latency.verdict} {where}"


def _in_milliseconds(spread: Spread) -> tuple[str, str]:
    middle, lower, upper = (
        f"{1000 * seconds:.3g}" for seconds in (spread.median, spread.lower, spread.upper)
    )
    return f"{middle} ms", f"{lower} to {upper}"


def _spread(seconds: Sequence[float]) -> Spread:
    lower, middle, upper = np.quantile(seconds, [0.25, 0.5, 0.75])
    return Spread(median=float(middle), lower=float(lower), upper=float(upper))


def _time(call: Callable[[], object], calls: int) -> float:
    """Return the mean seconds of a call, over ``calls`` calls in a row."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep Python from collecting garbage in the middle of a block."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
