"""Thresholds: the values that divide the best scores of tensors from the rest."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_prune.tensors.batches import find_division
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
from lightning_prune.tensors.samples import Fits, Sample


def find_thresholds(
    pool: Sequence[Part], fits: Fits, sizes: Sizes = SIZES, *, total: int | None = None
) -> list[Threshold]:
    """Find the highest value that does not fit, and how it divides each tensor.

    All higher values of all tensors fit together; with the equal values they do not.

    A sample of each tensor gives a bracket around the value. A pass counts the values above the
    bracket and holds the few values inside. The search repeats on the held values until it can sort
    them. This is the idea of Floyd & Rivest, "Expected time bounds for selection" (1975),
    https://doi.org/10.1145/360680.360691. The search reads a sample, then rarely needs more than a
    single pass. If a part has a guess, the first bracket is around the guess, without a sample. The
    search needs memory for a piece and for a few hundredths of the values. Shards send no
    values, but histograms of the bits, from the highest bits down. Those are four histograms of 2
    KiB each for a tensor in single precision, at any size of the tensor. If only the sum decides,
    they are four histograms for all tensors together.

    Args:
        pool: The tensors.
        fits: Whether numbers to keep fit. It must be true of zeros, and false of all values.
        sizes: Sizes of the pieces of the search.
        total: The largest sum that fits, if only the sum of the numbers decides. Then the search is
            a little faster.
    """
    if any(part.shard is not None for part in pool):
        return search_histograms(pool, fits, sizes, by_total=total is not None)
    if all(part.is_batched for part in pool):
        return find_division(pool, fits, sizes, total)
    field = _Field(pool, fits, sizes, by_total=total is not None)
    guess = next((part.guess for part in pool if part.guess), None)
    found = field.step() if guess is None else field.look_near(guess)
    while found is None:
        found = field.step()
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
        (threshold,) = find_thresholds([part], lambda counts: counts[0] < keep, sizes)
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
    (last,) = find_thresholds([indices], lambda counts: counts[0] < ties, sizes)
    return threshold.value, int((order >= last.value).count_nonzero())


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
        sizes: Number of values of the field in each tensor.
        above: Number of values above the field in each tensor.
    """

    def __init__(self, pool: Sequence[Part], fits: Fits, limits: Sizes, *, by_total: bool) -> None:
        self.low: float | None = None  # an infinite bound would exclude infinities
        self.high: float | None = None
        self.sizes = np.array([part.size for part in pool])
        self.above = np.zeros_like(self.sizes)
        self._pool = pool
        self._ask = fits
        self._by_total = by_total
        self._limits = limits
        self._is_double = False
        self._held: list[Any] | None = None  # the values of each tensor, if they are few
        self._between: list[Any] | None = None  # the values between the bounds of the last split

    def look_near(self, guess: float) -> list[Threshold] | None:
        """Return the thresholds if they are found near a guess; else narrow and return None."""
        margin = abs(guess) * self._limits.near
        return self._narrow_to(guess - margin, guess + margin)

    def step(self) -> list[Threshold] | None:
        """Return the thresholds if they are found; else narrow the field and return None."""
        size = int(self.sizes.sum())
        # To sort values that are held is cheap beside another reading.
        is_all = size <= self._limits.sorted * (1 if self._held is None else 4)
        values = self._sample(1 if is_all else size // (2 * round(size ** (2 / 3))) | 1)
        if self._by_total:
            sample = Sample([np.concatenate(values)], np.array([size]))
        else:
            sample = Sample(values, self.sizes)
        if not is_all:
            return self._narrow_to(*sample.bracket(self._fits, self._limits.spread))
        value = sample.find(self._fits)
        counts = [[(of_tensor > value).sum(), (of_tensor == value).sum()] for of_tensor in values]
        return self._divide(value, *np.array(counts).T)

    def _sample(self, stride: int) -> list[Any]:
        """Return values of each tensor, at even distances."""
        by_tensor = []
        for index in range(len(self._pool)):
            # A view would hold the memory of the whole tensor, so copy.
            values = [to_tensor(piece).to("cpu", copy=True) for piece in self._read(index, stride)]
            by_tensor.append(torch.cat(values).numpy())
        self._is_double |= any(values.dtype == np.float64 for values in by_tensor)
        return by_tensor

    def _fits(self, above: Any) -> bool:
        """Whether numbers of field values fit, with all values above the field."""
        if self._by_total:
            return self._ask([int(self.above.sum() + above.sum())])
        return self._ask((self.above + above).tolist())

    def _narrow_to(self, low: float, high: float) -> list[Threshold] | None:
        """Return the thresholds if a bound is the value; else narrow the field and return None."""
        above, at_high, between, at_low = self._split(low, high)
        if not self._fits(above):
            self._narrow(high, self.high, above * 0, above)
        elif not self._fits(above + at_high):
            return self._divide(high, above, at_high)
        elif not self._fits(above + at_high + between):
            self._narrow(low, high, above + at_high, between, is_between=True)
        elif not self._fits(above + at_high + between + at_low):
            return self._divide(low, above + at_high + between, at_low)
        else:
            higher = above + at_high + between + at_low
            self._narrow(self.low, low, higher, self.sizes - higher)
        return None

    def _split(self, low: float, high: float) -> Any:
        """Count in each tensor the values above ``high``, at ``high``, between, and at ``low``."""
        counts, held = [], 0
        self._between = []
        for index in range(len(self._pool)):
            of_tensor, between = self._split_tensor(index, low, high)
            held += len(between)
            if held > self._limits.held:
                self._between = None
            if self._between is not None:
                self._between.append(between)
            counts.append(of_tensor)
        return np.stack(counts, axis=1)

    def _split_tensor(self, index: int, low: float, high: float) -> tuple[Any, Any]:
        """Make the same counts in a tensor, and return the values between."""
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
        higher: Any,
        sizes: Any,
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

    def _divide(self, value: float, higher: Any, at: Any) -> list[Threshold]:
        """Return thresholds from the numbers of field values above and at a value."""
        return [
            Threshold(value=value, above=number, at=equal)
            for number, equal in zip((self.above + higher).tolist(), at.tolist(), strict=True)
        ]

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
