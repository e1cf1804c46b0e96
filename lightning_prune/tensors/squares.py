"""Keys in the order of values, and squares as whole numbers, which sum up in any order."""

from dataclasses import dataclass
from typing import Any

import torch

FRACTION = 52
"""The bits of a double that hold the fraction."""

HALF = 27
"""A square has twice as many bits. A sum of halves has room for 2**36 values."""


@dataclass(frozen=True, kw_only=True)
class SquareKeys:
    """Whole numbers in the order of values: the bits of a double without the bits that are 0.

    Args:
        unused: The number of low bits that are 0 in each value.
        least: The exponent of the least value whose square counts.
        end: The exponent that no finite value has.
        bins: Number of bins of each tensor in a pass.
    """

    unused: int
    least: int
    end: int
    bins: int

    @property
    def shift(self) -> int:
        """The bits of a key that hold the fraction: no bin is wider, so it has an exponent."""
        return FRACTION - self.unused


KEYS = {
    torch.float32: SquareKeys(unused=29, least=1023 - 149, end=1023 + 128, bins=512),
    torch.float64: SquareKeys(unused=0, least=1023 - 538, end=1023 + 1024, bins=2048),
}


def square(bits: Any, double: Any) -> Any:
    """Return the squares of doubles as whole numbers below 2**54, in an array or a tensor.

    A square has the unit 2**(2e - 52), where e is the exponent of the double. It is exact for a
    value of single precision.

    Args:
        bits: The bits of the doubles.
        double: The dtype of a double.
    """
    fractions = (bits & (1 << FRACTION) - 1 | 1023 << FRACTION).view(double)
    return fractions * fractions * 2.0**FRACTION
