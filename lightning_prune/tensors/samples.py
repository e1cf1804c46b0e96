"""Samples of tensors, which estimate how a value divides each tensor."""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Fits = Callable[[Sequence[int]], bool]
"""Whether numbers to keep, one for each tensor, fit; never true again as the numbers grow."""

_ROWS = 1024  # the places of a sample that are tried
_DRAWS = 4  # the number of trials with errors added


class Sample:
    """Values at even distances in each tensor.

    Args:
        by_tensor: The values of each tensor, as numpy arrays.
        sizes: Number of values that each tensor has.
    """

    def __init__(self, by_tensor: Sequence[Any], sizes: Any) -> None:
        dtype = np.result_type(*by_tensor)
        self._by_tensor = [np.sort(values.astype(dtype, copy=False)) for values in by_tensor]
        is_single = len(self._by_tensor) == 1
        merged = self._by_tensor[0] if is_single else np.sort(np.concatenate(self._by_tensor))
        self._values = merged[::-1]
        self._sizes = sizes

    def find(self, fits: Fits) -> float:
        """Return the highest value that does not fit, in a sample of all values."""
        places = range(len(self._values))
        last = find_last(places, lambda place: fits(self._count_above(self._values[place])))
        return float(self._values[max(last, 0)])

    def bracket(self, fits: Fits, spread: float) -> tuple[float, float]:
        """Return two values that likely enclose the highest value that does not fit.

        Errors of the sample are drawn a few times. The bracket is as wide as they move the value.

        Args:
            fits: Whether numbers to keep fit.
            spread: Half the width of the bracket, in standard deviations of the value.
        """
        rows = self._values[:: -(-len(self._values) // _ROWS)]
        above = self._count_above(rows)
        sampled = np.array([[max(len(values), 1)] for values in self._by_tensor])
        deviations = np.sqrt(above * (1 - above / sampled))
        factors = self._sizes / sampled[:, 0]

        def find(signs: Any) -> int:
            def fits_about(row: int) -> bool:
                about = (above[:, row] + signs * deviations[:, row]) * factors
                return fits(about.round().clip(0, self._sizes).astype(int))

            return max(find_last(range(len(rows)), fits_about), 0)

        middle = find(0)
        of_rank = float(np.linalg.norm(deviations[:, middle])) * len(rows) / len(self._values)
        margin = spread * of_rank
        if len(sampled) > 1:  # the tensors may weigh differently
            draws = np.random.default_rng(0).choice([-1, 1], (_DRAWS, len(sampled)))
            shift = math.sqrt(sum((find(signs) - middle) ** 2 for signs in draws) / _DRAWS)
            margin = spread * max(shift, of_rank)
        low = min(int(middle + margin) + 2, len(rows) - 1)
        high = max(int(middle - margin), 0)
        return float(rows[low]), float(rows[high])

    def _count_above(self, value: Any) -> Any:
        """Return how many sampled values are above a value, or several, in each tensor."""
        return np.array(
            [len(values) - values.searchsorted(value, "right") for values in self._by_tensor]
        )


def find_last(numbers: range, holds: Callable[[int], bool]) -> int:
    """Return the last number of a range for which a claim holds, or the number before the range.

    The claim is tried for a few numbers only: it never holds again once it does not.

    Args:
        numbers: Numbers in ascending order.
        holds: The claim.

    Examples:
        >>> find_last(range(10), lambda number: number**2 < 50)
        7
        >>> find_last(range(3, 10), lambda number: False)
        2
    """
    return numbers.start + bisect_left(numbers, True, key=lambda number: not holds(number)) - 1
