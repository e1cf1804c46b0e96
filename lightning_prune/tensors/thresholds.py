"""Thresholds: the values that divide the best scores of tensors from the rest."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_prune.tensors.histograms import search_histograms
from lightning_prune.tensors.parts import (
    SIZES,
    Part,
    Sizes,
    Threshold,
    count_true,
    to_array,
    to_tensor,
)
from lightning_prune.tensors.shards import sum_by_tensor


def find_thresholds(pool: Sequence[Part], keep: int, sizes: Sizes = SIZES) -> list[Threshold]:
    """Find the ``keep``-th highest value of all tensors together, and how it divides each tensor.

    A sample gives a bracket around the value. A pass counts the values above the bracket and holds
    the few values inside. The search repeats on the held values until it can sort them. This is the
    idea of Floyd & Rivest, "Expected time bounds for selection" (1975),
    https://doi.org/10.1145/360680.360691. The search reads a sample, then rarely needs more than a
    single pass. It needs memory for a piece and for about a hundredth of the values. Shards send no
    values, but histograms of the bits, from the highest bits down. Those are four histograms of 2
    KiB each in single precision, at any size of the tensors.

    Args:
        pool: The tensors.
        keep: A rank, from 1 to the number of all values.
        sizes: Sizes of the pieces of the search.
    """
    field = _Field(pool, sizes)
    if any(part.shard is not None for part in pool):
        return field.count(search_histograms(pool, keep, sizes))
    while True:
        sample, is_all = field.sample()
        rank = keep - int(field.above.sum())
        if is_all:
            return field.count(float(sample[rank - 1]))
        low, high = _bracket(sample, rank / field.size, sizes.spread)
        found = field.step(low, high, rank)
        if found is not None:
            return found


def divide_local(
    part: Part, keep: int, threshold: Threshold | None = None, sizes: Sizes = SIZES
) -> tuple[float, int | None]:
    """Return a threshold of a tensor, and the number of equal local values to keep.

    Of equal local values the first are kept, because a local part has the order of the whole
    tensor.

    Args:
        part: The tensor.
        keep: A rank, from 1 to the number of values of the tensor.
        threshold: The threshold of a pool, which is reused if it divides this tensor at ``keep``.
        sizes: Sizes of the pieces of the search.

    Returns:
        The value, and the number; None to keep all equal values of the tensor.
    """
    if threshold is None or not threshold.divides_at(keep):
        (threshold,) = find_thresholds([part], keep, sizes)
    ties = keep - threshold.above
    if ties == threshold.at:
        return threshold.value, None
    if part.shard is None or ties == 0:
        return threshold.value, ties
    places, start = [], 0
    for piece in part.read(1):
        places.append((piece == threshold.value).nonzero().flatten() + start)
        start += len(piece)
    order = -part.shard.find_indices_at(torch.cat(places)).double()  # the lower index comes first
    indices = Part.of(order, part.shard, size=threshold.at, sizes=sizes)
    (last,) = find_thresholds([indices], ties, sizes)
    return threshold.value, int((order >= last.value).sum())


def cut_pieces(
    pieces: Iterable[Tensor], value: float, ties: int | None, sizes: Sizes = SIZES
) -> Iterator[Tensor]:
    """Yield the bool mask of each piece: all higher values, and the first equal values.

    Args:
        pieces: The pieces that a `Part` reads.
        value: The threshold.
        ties: Number of equal values to keep; None for all.
        sizes: Says whether numpy compares.
    """
    for piece in pieces:
        values = to_array(piece, sizes)
        mask = values >= value if ties is None else values > value
        if ties:
            places = (values == value).nonzero()
            places = places[0] if isinstance(places, tuple) else places.flatten()
            mask[places[:ties]] = True
            ties -= min(ties, len(places))
        yield to_tensor(mask)


class _Field:
    """The values between ``low`` and ``high``, both excluded, which contain the threshold.

    Attributes:
        low: The lower bound; None for no bound.
        high: The higher bound; None for no bound.
        sizes: Number of values of the field in each tensor, over all processes.
        above: Number of values above the field in each tensor, over all processes.
    """

    def __init__(self, pool: Sequence[Part], limits: Sizes) -> None:
        self.low: float | None = None  # an infinite bound would exclude infinities
        self.high: float | None = None
        self.sizes = torch.tensor([part.size for part in pool], device="cpu")
        self.above = torch.zeros_like(self.sizes)
        self._pool = pool
        self._limits = limits
        self._is_double = False
        self._held: list[Any] | None = None  # the values of each tensor, if they are few
        self._between: list[Any] | None = None  # the values between the bounds of the last split

    @property
    def size(self) -> int:
        """Number of values of the field in all tensors."""
        return int(self.sizes.sum())

    def sample(self) -> tuple[Any, bool]:
        """Return values at even distances in descending order, and whether these are all values."""
        is_all = self.size <= self._limits.sorted
        stride = 1 if is_all else self.size // (2 * round(self.size ** (2 / 3))) | 1
        chosen: list[Tensor] = []
        for index in range(len(self._pool)):
            values = map(to_tensor, self._read(index, stride))
            # A view would hold the memory of the whole tensor, so copy.
            chosen += (piece.to("cpu", copy=True) for piece in values)
        self._is_double |= any(piece.dtype == torch.float64 for piece in chosen)
        return np.sort(torch.cat(chosen).numpy())[::-1], is_all

    def step(self, low: float, high: float, rank: int) -> list[Threshold] | None:
        """Return the thresholds if a bound is the value; else narrow the field and return None.

        Args:
            low: The lower bound.
            high: The higher bound.
            rank: The rank of the value in the field.
        """
        above, at_high, between, at_low = self._split(low, high)
        if rank <= above.sum():
            self._narrow(high, self.high, above * 0, above)
        elif rank <= (above + at_high).sum():
            return self._divide(high, above, at_high)
        elif rank <= (above + at_high + between).sum():
            self._narrow(low, high, above + at_high, between, is_between=True)
        elif rank <= (above + at_high + between + at_low).sum():
            return self._divide(low, above + at_high + between, at_low)
        else:
            higher = above + at_high + between + at_low
            self._narrow(self.low, low, higher, self.sizes - higher)
        return None

    def count(self, value: float) -> list[Threshold]:
        """Return the thresholds at a value, from counts in every tensor."""
        counts = [(self._count(i, value), part.shard) for i, part in enumerate(self._pool)]
        return self._divide(value, *sum_by_tensor(counts).T)

    def _split(self, low: float, high: float) -> Tensor:
        """Count in each tensor the values above ``high``, at ``high``, between, and at ``low``."""
        counts, held = [], 0
        self._between = []
        for index, part in enumerate(self._pool):
            local_counts, between = self._split_local(index, low, high)
            held += len(between)
            if held > self._limits.held:
                self._between = None
            if self._between is not None:
                self._between.append(between)
            counts.append((torch.from_numpy(local_counts), part.shard))
        return sum_by_tensor(counts).T

    def _split_local(self, index: int, low: float, high: float) -> tuple[Any, Any]:
        """Make the same counts in a local part, and return the values between."""
        counts = np.zeros(4, dtype=np.int64)
        near: list[Tensor] = []
        between: list[Tensor] = []
        for values in self._read(index):
            is_above = values > high
            counts[0] += count_true(is_above)
            near.append(to_tensor(values[is_above ^ (values >= low)]))
            if sum(map(len, near)) > self._limits.held:  # a tensor full of ties
                between.append(self._sort_out(near, counts, low, high))
                near = []
        if near or not between:
            between.append(self._sort_out(near, counts, low, high))
        return counts, self._to_array(torch.cat(between))

    def _sort_out(self, near: Sequence[Tensor], counts: Any, low: float, high: float) -> Tensor:
        """Count values from ``low`` to ``high`` into ``counts``; return the values between."""
        values = self._to_array(torch.cat(list(near)))
        inside = values[(values > low) & (values < high)]
        at_high = count_true(values == high)
        counts[1:] += [at_high, len(inside), len(values) - at_high - len(inside)]
        return to_tensor(inside)

    def _narrow(
        self,
        low: float | None,
        high: float | None,
        higher: Tensor,
        sizes: Tensor,
        *,
        is_between: bool = False,
    ) -> None:
        """Narrow the field to the values between two bounds.

        Args:
            low: The lower bound; None for no bound.
            high: The higher bound; None for no bound.
            higher: Number of values of the field above the bounds, in each tensor.
            sizes: Number of values between the bounds, in each tensor.
            is_between: Whether the last split had the same bounds.
        """
        self.low, self.high, self.sizes = low, high, sizes
        self.above = self.above + higher
        self._held = self._between if is_between else None

    def _divide(self, value: float, higher: Tensor, at: Tensor) -> list[Threshold]:
        """Return thresholds from the numbers of field values above and at a value."""
        above = (self.above + higher).tolist()
        return [
            Threshold(value=value, above=number, at=equal)
            for number, equal in zip(above, at.tolist(), strict=True)
        ]

    def _count(self, index: int, value: float) -> Tensor:
        counts = torch.zeros(2, dtype=torch.int64, device="cpu")
        for values in self._read(index):
            counts[0] += count_true(values > value)
            counts[1] += count_true(values == value)
        return counts

    def _read(self, index: int, stride: int = 1) -> Iterator[Any]:
        """Yield the local values of a tensor in the field, in pieces."""
        if self._held is not None:
            yield self._held[index][::stride]
            return
        is_whole = self.low is None and self.high is None
        for piece in self._pool[index].read(stride if is_whole else 1):
            values = self._to_array(piece.double() if self._is_double else piece)
            if self.low is not None:
                values = values[values > self.low]
            if self.high is not None:
                values = values[values < self.high]
            yield values if is_whole else values[::stride]

    def _to_array(self, values: Tensor) -> Any:
        return to_array(values, self._limits)


def _bracket(sample: Any, share: float, spread: float) -> tuple[float, float]:
    """Return two values of a descending sample that likely enclose the end of the best share."""
    size = len(sample)
    margin = spread * math.sqrt(size * share * (1 - share)) + 1
    low = min(math.ceil(size * share + margin), size - 1)
    high = max(math.floor(size * share - margin) - 1, 0)
    return float(sample[low]), float(sample[high])
