"""The only selection code: exactly the k best, of one tensor, of several or of shards."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_prune.tensors.shards import Shard, total_of_pool, totals

_PIECE = 3 << 15  # values that stay in the cache of a CPU from one operation to the next
_LAUNCH = 1 << 24  # values that are worth a launch on an accelerator
_SORTED = 1 << 16  # values that are sorted at once
_HELD = 1 << 19  # values that are held in memory rather than read again
_SPREAD = 3.0  # standard deviations of a rank in a sample: 3 of 1,000 fall beyond
_DIGIT = 8  # bits that a pass over shards finds
_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


def number_kept(atoms: int, sparsity: float) -> int:
    """Return how many of ``atoms`` are kept at ``sparsity``: the one rounding rule.

    Half to even, in double precision: ``round(atoms * (1 - sparsity))``.

    Examples:
        >>> [number_kept(n, 0.5) for n in (1, 2, 3)]
        [0, 1, 2]
    """
    return round(atoms * (1 - sparsity))


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A value that divides a tensor.

    Args:
        value: The value.
        above: How many are higher in the whole tensor.
        at: How many are equal.
    """

    value: float
    above: int
    at: int


@dataclass(kw_only=True, eq=False)
class Part:
    """What is here of a tensor that is ranked, alone or with others.

    Args:
        read: Yields its values in the order of their indices, flat and in pieces (`pieces_of`), at
            least an empty one, each time afresh; or, given a stride, some at about that distance.
            Floating-point, without NaN; infinities are ranked.
        size: Number of values of the whole tensor.
        least: How many are kept at least, whatever is in other tensors.
        shard: Which part of the tensor is here; None if all of it is.
        known: What the last `threshold` of a pool with it has found.
    """

    read: Callable[[int], Iterable[Tensor]]
    size: int
    least: int = 0
    shard: Shard | None = None
    known: Threshold | None = None

    @classmethod
    def of(cls, scores: Tensor, shard: Shard | None = None, size: int | None = None) -> "Part":
        """Return the part whose values are there.

        Args:
            scores: The values of any shape and floating dtype.
            shard: Which part of the tensor they are.
            size: Number of values of the whole tensor, if it is not that of its shape.
        """
        size = size or (math.prod(shard.shape) if shard else scores.numel())

        def read(stride: int) -> Iterator[Tensor]:
            return (wide(scores[rows])[::stride] for rows in pieces_of(scores))

        return cls(read=read, size=size, shard=shard)


def best(scores: Tensor, keep: int) -> Tensor:
    """Return the bool mask of the ``keep`` highest scores; of equal ones the lower index.

    Args:
        scores: Scores of any shape and floating dtype, without NaN; infinities are ranked.
        keep: Number of entries to keep, in ``[0, scores.numel()]``.

    Examples:
        >>> best(torch.tensor([1.0, 2.0, 1.0]), 2).tolist()
        [True, True, False]
    """
    if keep <= 0:
        return torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    if keep >= scores.numel():
        return torch.ones(scores.shape, dtype=torch.bool, device=scores.device)
    part = Part.of(scores)
    mask = torch.cat(list(from_threshold(part.read(1), *threshold_here(part, keep))))
    return mask.view(scores.shape)


def best_of_rows(scores: Tensor, keep: Tensor) -> Tensor:
    """Return the bool mask of the ``keep[i]`` highest scores of each row ``i``, ties as in `best`.

    Args:
        scores: ``(rows, columns)``.
        keep: Number to keep in each row, ``(rows,)``.

    Examples:
        >>> best_of_rows(torch.tensor([[1.0, 3.0], [2.0, 2.0]]), torch.tensor([1, 1])).tolist()
        [[False, True], [True, False]]
    """
    order = wide(scores).view(scores.shape).argsort(dim=1, descending=True, stable=True)
    ranks = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    kept = ranks < keep[:, None]
    return torch.zeros_like(kept).scatter_(1, order, kept)


def best_of_pool(pool: Sequence[Part], keep: int) -> list[int]:
    """Return how many of the ``keep`` highest values of all tensors together are in each tensor.

    Of equal values the earlier tensor comes first. A tensor that would keep less than its least
    keeps that, and the rest is found among the others.

    Args:
        pool: The tensors.
        keep: How many to keep of all, between the sums of what is kept at least and of the sizes.

    Examples:
        >>> pool = [Part.of(torch.tensor([1.0, 2.0])), Part.of(torch.tensor([2.0, 0.0, 2.0]))]
        >>> best_of_pool(pool, 2)
        [1, 1]
    """
    survivors = _survivors(pool, keep)
    low = [i for i, part in enumerate(pool) if survivors[i] < part.least]
    if low:
        others = [i for i in range(len(pool)) if i not in low]
        rest = best_of_pool([pool[i] for i in others], keep - sum(pool[i].least for i in low))
        survivors = [part.least for part in pool]
        for index, number in zip(others, rest, strict=True):
            survivors[index] = number
    return survivors


def _survivors(pool: Sequence[Part], keep: int) -> list[int]:
    if keep <= 0:
        return [0] * len(pool)
    if keep >= sum(part.size for part in pool):
        return [part.size for part in pool]
    found = threshold(pool, keep)
    left = keep - sum(one.above for one in found)
    survivors = []
    for one in found:
        ties = min(left, one.at)
        survivors.append(one.above + ties)
        left -= ties
    return survivors


def threshold(pool: Sequence[Part], keep: int) -> list[Threshold]:
    """Return the ``keep``-th highest value of all tensors together, and how it divides each.

    A sample brackets it; one pass counts what is above and holds the few values in the bracket,
    which are searched in the same way until they can be sorted. That is the idea of Floyd & Rivest,
    "Expected time bounds for selection" (1975), https://doi.org/10.1145/360680.360691. It takes a
    look at a sample, one pass to count and hardly ever more, and the memory of a piece and of one
    value in a hundred. Of shards no values travel, but histograms of their bits, from the highest
    down: four of 2 KiB each in single precision, however large the tensors are.

    Args:
        pool: The tensors.
        keep: A rank from 1 to the number of all values.
    """
    field = _Field(pool)
    if any(part.shard is not None for part in pool):
        return field.count(_by_histograms(pool, keep))
    while True:
        sample, is_all = field.sample()
        rank = keep - int(field.above.sum())
        if is_all:
            return field.count(float(sample[rank - 1]))
        low, high = _bracket(sample, rank / field.size)
        above, at_high, between, at_low = field.split(low, high)
        if rank <= above.sum():
            field.narrow(high, field.high, above * 0, above)
        elif rank <= (above + at_high).sum():
            return field.found(high, above, at_high)
        elif rank <= (above + at_high + between).sum():
            field.narrow(low, high, above + at_high, between, is_between=True)
        elif rank <= (above + at_high + between + at_low).sum():
            return field.found(low, above + at_high + between, at_low)
        else:
            higher = above + at_high + between + at_low
            field.narrow(field.low, low, higher, field.sizes - higher)


def threshold_here(part: Part, keep: int) -> tuple[float, int | None]:
    """Return a threshold of one tensor, and how many equal values are kept of those here.

    That of a pool will do, if it divides the tensor so. Those that are kept are the first ones
    here, because the entries of a part come in the order of the whole.

    Args:
        part: The tensor.
        keep: A rank from 1 to the number of its values.

    Returns:
        The value, and the number; None if all equal values of the tensor are kept.
    """
    found = part.known
    if found is None or not found.above <= keep <= found.above + found.at:
        (found,) = threshold([part], keep)
    ties = keep - found.above
    if ties == found.at:
        return found.value, None
    if part.shard is None or ties == 0:
        return found.value, ties
    places, start = [], 0
    for piece in part.read(1):
        places.append((piece == found.value).nonzero().flatten() + start)
        start += len(piece)
    order = -part.shard.indices_of(torch.cat(places)).double()  # the lower index comes first
    (last,) = threshold([Part.of(order, part.shard, size=found.at)], ties)
    return found.value, int((order >= last.value).sum())


def best_here(scores: Tensor, keep: int, shard: Shard | None) -> int:
    """Return how many of the ``keep`` highest scores of a tensor are in the part that is here.

    They are the highest of that part, because its entries come in the order of the whole.

    Args:
        scores: The scores of the part.
        keep: How many to keep of the whole tensor.
        shard: Which part is here; None if it is all.
    """
    if shard is None or keep <= 0:
        return keep
    part = Part.of(scores, shard)
    if keep >= part.size:
        return scores.numel()
    value, ties = threshold_here(part, keep)
    return sum(_count(_array(mask)) for mask in from_threshold(part.read(1), value, ties))


def from_threshold(pieces: Iterable[Tensor], value: float, ties: int | None) -> Iterator[Tensor]:
    """Yield the bool mask of each piece: what is above a value, and the first ties with it.

    Args:
        pieces: What a `Part` reads.
        value: The threshold.
        ties: How many that equal it are kept; None for all.
    """
    for piece in pieces:
        values = _array(piece)
        mask = values >= value if ties is None else values > value
        if ties:
            places = (values == value).nonzero()
            places = places[0] if isinstance(places, tuple) else places.flatten()
            mask[places[:ties]] = True
            ties -= min(ties, len(places))
        yield torch.from_numpy(mask) if isinstance(mask, np.ndarray) else mask


def pieces_of(tensor: Tensor) -> Iterator[slice]:
    """Yield slices along the first axis that are small beside the tensor."""
    rows = len(tensor)
    most = _PIECE if tensor.device.type == "cpu" else _LAUNCH
    step = max(most * rows // max(tensor.numel(), 1), 1)
    return (slice(start, start + step) for start in range(0, max(rows, 1), step))


def wide(scores: Tensor) -> Tensor:
    """Return the scores flat, in a dtype that numpy and torch can compare, without loss."""
    scores = scores.detach().reshape(-1)
    return scores if scores.dtype == torch.float64 else scores.float()


class _Field:
    """The values among which a threshold is: those between ``low`` and ``high``, both excluded.

    Where a bound is None, there is none.

    Attributes:
        sizes: How many they are in each tensor, of all processes.
        above: How many are higher in each tensor.
    """

    def __init__(self, pool: Sequence[Part]) -> None:
        self.low: float | None = None  # an infinite bound would exclude infinities
        self.high: float | None = None
        self.sizes = torch.tensor([part.size for part in pool])
        self.above = torch.zeros_like(self.sizes)
        self._pool = pool
        self._is_double = False
        self._held: list[Any] | None = None  # the values of each tensor, where they are few
        self._between: list[Any] | None = None  # those of the last split

    @property
    def size(self) -> int:
        """How many they are together."""
        return int(self.sizes.sum())

    def sample(self) -> tuple[Any, bool]:
        """Return values at even distances in descending order, and whether these are all."""
        is_all = self.size <= _SORTED
        stride = 1 if is_all else self.size // (2 * round(self.size ** (2 / 3))) | 1
        chosen: list[Tensor] = []
        for index in range(len(self._pool)):
            values = map(torch.as_tensor, self._values(index, stride))
            chosen += (some.to("cpu", copy=True) for some in values)  # views would keep them all
        self._is_double |= any(some.dtype == torch.float64 for some in chosen)
        return np.sort(torch.cat(chosen).numpy())[::-1], is_all

    def split(self, low: float, high: float) -> Tensor:
        """Return how many are above ``high``, at it, between, and at ``low``, in each tensor."""
        counts, held = [], 0
        self._between = []
        for index, part in enumerate(self._pool):
            here, between = self._split(index, low, high)
            held += len(between)
            if held > _HELD:
                self._between = None
            if self._between is not None:
                self._between.append(between)
            counts.append((torch.from_numpy(here), part.shard))
        return totals(counts).T

    def _split(self, index: int, low: float, high: float) -> tuple[Any, Any]:
        """Return these numbers of what is here of a tensor, and the values between."""
        above, counts, between = 0, np.zeros(3, dtype=np.int64), []
        near: list[Tensor] = []

        def sort_out() -> None:
            values = _array(torch.cat(near))
            near.clear()
            inside = values[(values > low) & (values < high)]
            at_high = _count(values == high)
            counts[:] += [at_high, len(inside), len(values) - at_high - len(inside)]
            between.append(torch.as_tensor(inside))

        for values in self._values(index):
            is_above = values > high
            above += _count(is_above)
            near.append(torch.as_tensor(values[is_above ^ (values >= low)]))
            if sum(map(len, near)) > _HELD:  # of a tensor full of ties
                sort_out()
        if near or not between:
            sort_out()
        return np.array([above, *counts]), _array(torch.cat(between))

    def narrow(
        self,
        low: float | None,
        high: float | None,
        higher: Tensor,
        sizes: Tensor,
        *,
        is_between: bool = False,
    ) -> None:
        """Go on with those between two bounds.

        Args:
            low: The lower bound; None if there is none.
            high: The higher one.
            higher: How many of the present ones are above them in each tensor.
            sizes: How many are between them.
            is_between: Whether they are those between the bounds of the last `split`.
        """
        self.low, self.high, self.sizes = low, high, sizes
        self.above = self.above + higher
        self._held = self._between if is_between else None

    def count(self, value: float) -> list[Threshold]:
        """Return a threshold with what is above and at it."""
        counts = [(self._count(i, value), part.shard) for i, part in enumerate(self._pool)]
        return self.found(value, *totals(counts).T)

    def _count(self, index: int, value: float) -> Tensor:
        counts = torch.zeros(2, dtype=torch.int64)
        for values in self._values(index):
            counts += torch.tensor([_count(values > value), _count(values == value)])
        return counts

    def found(self, value: float, higher: Tensor, at: Tensor) -> list[Threshold]:
        """Return a threshold with what of the present ones is above and at it; note it, too."""
        divided = zip((self.above + higher).tolist(), at.tolist(), strict=True)
        found = [Threshold(value=value, above=above, at=equal) for above, equal in divided]
        for part, its in zip(self._pool, found, strict=True):
            part.known = its
        return found

    def _values(self, index: int, stride: int = 1) -> Iterator[Any]:
        """Yield what is left of what is here of a tensor, in pieces."""
        if self._held is not None:
            yield self._held[index][::stride]
            return
        is_whole = self.low is None and self.high is None
        for piece in self._pool[index].read(stride if is_whole else 1):
            values = _array(piece.double() if self._is_double else piece)
            if self.low is not None:
                values = values[values > self.low]
            if self.high is not None:
                values = values[values < self.high]
            yield values if is_whole else values[::stride]


def _by_histograms(pool: Sequence[Part], keep: int) -> float:
    """Return the ``keep``-th highest value of tensors of which parts are here."""
    looks = (piece.dtype for part in pool for piece in part.read(1 << 40))
    dtype = torch.float64 if torch.float64 in looks else torch.float32
    bits = dtype.itemsize * 8
    known, top, left = 0, bits, keep  # of the key, the bits from `top` on are known
    while top:
        shift = max(top - _DIGIT, 0)
        counts = total_of_pool(
            (_digits(part, dtype, known, top, shift), part.shard) for part in pool
        )
        digit = len(counts) - 1 - int((counts.flip(0).cumsum(0) < left).sum())
        left -= int(counts[digit + 1 :].sum())
        known, top = known << (top - shift) | digit, shift
    key = torch.tensor(known - (1 << bits - 1), dtype=_INTEGERS[dtype])
    return float(_ordered(key).view(dtype))


def _digits(part: Part, dtype: torch.dtype, known: int, top: int, shift: int) -> Tensor:
    """Return how many keys, of those with the known higher bits, have each of the next digits."""
    digits = 1 << (top - shift)
    counts = torch.zeros(digits, dtype=torch.int64)
    bits = dtype.itemsize * 8
    for piece in part.read(1):
        # -0.0 ranks as +0.0.
        keys = _array(_ordered((piece.to(dtype) + 0.0).view(_INTEGERS[dtype])))
        if top < bits:
            keys = keys[keys >> top == known - (1 << bits - 1 >> top)]
        found = keys >> shift & digits - 1
        if top == bits:  # the highest digit has the sign
            found = found ^ digits >> 1
        counts += torch.bincount(torch.as_tensor(found), minlength=digits).cpu()
    return counts


def _ordered(bits: Tensor) -> Tensor:
    """Return integers in the order of the floats whose bits these are; the same call undoes it."""
    integer = torch.iinfo(bits.dtype)
    return bits ^ (bits >> integer.bits - 1 & integer.max)


def _bracket(sample: Any, share: float) -> tuple[float, float]:
    """Return two values of a descending sample between which a share of all is the highest."""
    size = len(sample)
    spread = _SPREAD * math.sqrt(size * share * (1 - share)) + 1
    low = min(math.ceil(size * share + spread), size - 1)
    high = max(math.floor(size * share - spread) - 1, 0)
    return float(sample[low]), float(sample[high])


def _array(values: Tensor) -> Any:
    """Return what compares and picks fastest: torch is many times slower at it on a CPU."""
    return values.numpy() if values.device.type == "cpu" else values


def _count(mask: Any) -> int:
    return int(np.count_nonzero(mask) if isinstance(mask, np.ndarray) else mask.sum())
