"""Means and deviations, bars, and the verdict with the exit code."""

import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, NoReturn


class Summary(NamedTuple):
    """The mean and the standard deviation of several values."""

    mean: float
    deviation: float

    def __str__(self) -> str:
        return " ± ".join(self.cells)

    @property
    def cells(self) -> tuple[str, str]:
        """The mean and the deviation, as a table shows them."""
        return f"{self.mean:.2f}", f"{self.deviation:.2f}"


def summarize(values: Sequence[float]) -> Summary:
    """Return the mean and the sample standard deviation, which is 0 for a single value.

    Examples:
        >>> str(summarize([97.0, 98.0, 99.0])), str(summarize([98.0]))
        ('98.00 ± 1.00', '98.00 ± 0.00')
    """
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return Summary(statistics.mean(values), deviation)


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A measured value and the limits that it must keep.

    Args:
        name: Names the value.
        value: The value; NaN never meets a bar.
        least: The smallest value that meets the bar.
        most: The largest value that meets the bar.

    Examples:
        >>> print(Bar(name="points lost", value=0.25, most=0.5))
        points lost: 0.25, at most 0.5 is wanted
        >>> Bar(name="times as fast", value=1.7, least=1.8).is_met
        False
    """

    name: str
    value: float
    least: float = -math.inf
    most: float = math.inf

    @property
    def is_met(self) -> bool:
        """Whether the value lies within both limits."""
        return self.least <= self.value <= self.most

    def __str__(self) -> str:
        limits = [("at least", self.least), ("at most", self.most)]
        wanted = [f"{word} {_written(limit)}" for word, limit in limits if math.isfinite(limit)]
        return f"{self.name}: {_written(self.value)}, {' and '.join(wanted)} is wanted"


def finish(bars: Iterable[Bar]) -> NoReturn:
    """Print the missed bars, and exit with 1 if there are any, else with 0."""
    missed = [bar for bar in bars if not bar.is_met]
    print("\n".join(f"missed: {bar}" for bar in missed) or "every bar is met")
    sys.exit(int(bool(missed)))


def finish_with_all(bars: Sequence[Bar]) -> NoReturn:
    """Print every bar with a verdict, and exit with 1 if a bar is missed, else with 0."""
    for bar in bars:
        print(f"{bar}: {'as asked' if bar.is_met else 'NO, that is not enough'}")
    sys.exit(int(not all(bar.is_met for bar in bars)))


def _written(value: float) -> str:
    if 0 < abs(value) < 0.01:
        return f"{value:.2g}"
    return f"{value:,.4f}".rstrip("0").rstrip(".")
