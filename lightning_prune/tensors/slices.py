"""Sums over the slices of a tensor, the same to the bit whether it is whole or in shards."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_prune.tensors.parts import SIZES, reads_at_once
from lightning_prune.tensors.shards import Shard, combine_shards

_EXACT = 52  # bits of a whole number that double precision adds up without rounding
_LEAST, _BIAS = -1022, 1023  # the least exponent of double precision, and the exponent of 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Slices:
    """The slices of a tensor along an axis.

    Args:
        read: Returns the values of the local part, in the shape of the local part. It is called
            twice, so that the values of many tensors need not exist at once.
        axis: The axis with an index for each slice.
        shard: Place of the local part in the tensor; None for a whole tensor.
        size: Number of values of the whole tensor.
    """

    read: Callable[[], Tensor]
    axis: int
    shard: Shard | None
    size: int

    def read_rows(self) -> Tensor:
        """Return the local values as a matrix, with a row for each local slice."""
        moved = self.read().movedim(self.axis, 0)
        return moved.reshape(len(moved), math.prod(moved.shape[1:]))

    def place(self, of_rows: Tensor) -> Tensor:
        """Return a value for each slice of the whole tensor: 0 for slices of other processes."""
        if self.shard is None:
            return of_rows
        whole = of_rows.new_zeros(self.shard.shape[self.axis])
        whole[self.shard.positions[self.axis].to(whole.device)] = of_rows
        return whole


def find_any_of_slices(slices: Sequence[Slices]) -> list[Tensor]:
    """Return for each tensor which slices have a value that is not 0, on every process."""
    found = [each.place(each.read_rows().any(1).to(torch.uint8)) for each in slices]
    whole = combine_shards(found, [each.shard for each in slices], "max")
    return [any_of_slice.bool() for any_of_slice in whole]


def sum_slices(slices: Sequence[Slices]) -> list[Tensor]:
    r"""Return for each tensor the sum of each slice, in double precision and on every process.

    Sums in floating point depend on their order, and so on the cuts of shards. Here each value is
    rounded to a multiple of a unit first. The unit depends on the slice of :math:`n` values alone:

    .. math:: u = 2^{\lceil \log_2 n \rceil + e - 52}, \quad \max |x| < 2^e

    Then each partial sum is a whole number of units below :math:`2^{53}`, which double precision
    holds exactly. So all orders give the same bits: any shards, any device, any number of
    processes. The rounding changes a value by at most :math:`2^{\lceil \log_2 n \rceil - 52}` of
    the largest value of the slice. This is the idea of Demmel & Nguyen, "Fast Reproducible
    Floating-Point Summation" (2013), with a single bin.

    Processes with shards send two messages for all tensors of a layout: 16 bytes a slice.

    Args:
        slices: The tensors; the processes that share shards call this together.

    Examples:
        >>> values = torch.tensor([[0.5, 0.25], [2.0, 3.0]])
        >>> sums = sum_slices([Slices(read=lambda: values, axis=0, shard=None, size=4)])
        >>> sums[0].tolist()
        [0.75, 5.0]
    """
    shards = [each.shard for each in slices]
    largest = [each.place(_find_largest(each.read_rows())) for each in slices]
    exponents = [
        _choose_exponent(of_slices, each.size // max(len(of_slices), 1))
        for each, of_slices in zip(slices, combine_shards(largest, shards, "max"), strict=True)
    ]
    counts = [
        each.place(_count_units(each, of_slices))
        for each, of_slices in zip(slices, exponents, strict=True)
    ]
    whole = combine_shards(counts, shards, "sum")
    return [units * _power(each) for units, each in zip(whole, exponents, strict=True)]


def _find_largest(rows: Tensor) -> Tensor:
    """Return the largest magnitude of each row, in double precision; 0 for an empty row."""
    if not rows.numel():
        return torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    least, most = torch.aminmax(rows, dim=1)
    return torch.maximum(-least, most).double()


def _choose_exponent(largest: Tensor, size: int) -> Tensor:
    """Return the exponent of the unit of each slice.

    Args:
        largest: The largest magnitude of each slice.
        size: Number of values of a slice.
    """
    exponents = torch.frexp(largest).exponent.to(torch.int64)
    return (exponents + max(size - 1, 0).bit_length() - _EXACT).clamp(_LEAST, -_LEAST)


def _count_units(slices: Slices, exponents: Tensor) -> Tensor:
    """Return the sum of each local slice as a whole number of units."""
    rows, shard = slices.read_rows(), slices.shard
    if shard is not None:
        exponents = exponents[shard.positions[slices.axis].to(exponents.device)]
    scales = _power(-exponents)[:, None]
    sums = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for here, columns in _cut(rows):
        units = rows[here, columns].to(torch.float64, copy=True).mul_(scales[here]).round_()
        sums[here] += units.sum(1)
    return sums


def _cut(rows: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield the slices of rows and columns of pieces that are small and lie close in memory."""
    height, width = rows.shape
    everywhere = slice(None)
    piece = SIZES.piece if reads_at_once(rows.device) else SIZES.launch
    if rows.stride(0) >= rows.stride(1):
        step = max(piece // max(width, 1), 1)
        yield from ((slice(begin, begin + step), everywhere) for begin in range(0, height, step))
    else:
        step = max(piece // max(height, 1), 1)
        yield from ((everywhere, slice(begin, begin + step)) for begin in range(0, width, step))


def _power(exponents: Tensor) -> Tensor:
    """Return powers of two in double precision, exactly, by their bits."""
    return (exponents + _BIAS << _EXACT).view(torch.float64)
