"""LAMP over shards: the scores of all tensors are compared by histograms of their squares."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_prune.tensors.parts import Part, Threshold, find_dtype
from lightning_prune.tensors.samples import Fits, find_last
from lightning_prune.tensors.shards import sum_by_tensor

_BINS = 256  # of each tensor in a pass
_KEYS = {torch.float32: (torch.int32, np.int32), torch.float64: (torch.int64, np.int64)}
_FLOATS: dict[torch.dtype, Any] = {torch.float32: np.float32, torch.float64: np.float64}


@dataclass(frozen=True, kw_only=True, eq=False)
class LampPart:
    """The local part of a tensor whose scores LAMP compares with those of other tensors.

    Args:
        part: The scores to rank: at least 0, -inf where a weight is pruned, and +inf where it is
            kept at any score.
        protected: The scores of the weights at +inf, which are in the sums of squares, too.
    """

    part: Part
    protected: Tensor


def find_lamp_thresholds(pool: Sequence[LampPart], fits: Fits) -> list[Threshold]:
    r"""Find the highest LAMP score that does not fit, and how it divides each tensor.

    The LAMP score of a score s in a tensor is

    .. math:: \frac{s^2}{\sum_{v \ge s} v^2}

    It never falls as s grows. So for the edge of a bin, the number of scores above the edge is the
    number of LAMP scores that are at least the edge's. A pass sums up, over all processes, the
    numbers and the squares in 256 bins of each tensor. Then each tensor goes on with the bins
    between a LAMP score that fits and a score that does not. A pass sends 4 KiB for each tensor; in
    single precision there are about six.

    Args:
        pool: The tensors.
        fits: Whether numbers to keep fit. It must be true of the numbers at +inf, and false of all
            numbers of scores above -inf.
    """
    dtype = find_dtype([each.part for each in pool])
    fields = [_Field(each, dtype) for each in pool]
    outside = sum_by_tensor([(field.count_outside(), field.shard) for field in fields]).tolist()
    for field, (protected, zeros) in zip(fields, outside, strict=True):
        field.above, field.zeros = protected, zeros
    while True:
        _fill(fields)
        if fits([field.total for field in fields]):
            return [Threshold(value=0.0, above=each.total, at=each.zeros) for each in fields]
        low, high = _bracket(fields, fits)
        if all(field.width == 1 for field in fields):
            return [field.divide(low) for field in fields]
        for field in fields:
            field.narrow(low, high)


def _fill(fields: Sequence["_Field"]) -> None:
    """Sum up the bins of all tensors over all processes."""
    rows = [(field.count(), field.shard) for field in fields]
    for field, row in zip(fields, sum_by_tensor(rows).numpy(), strict=True):
        field.take(row)


def _bracket(fields: Sequence["_Field"], fits: Fits) -> tuple[float, float]:
    """Return a LAMP score at which too many weights stay, and a higher score that fits."""
    scores = np.unique(np.concatenate([field.scores for field in fields]))[::-1]
    places = range(len(scores))
    last = find_last(places, lambda place: fits([each.most(scores[place]) for each in fields]))
    high = scores[last] if last >= 0 else np.inf
    last = find_last(places, lambda place: fits([each.least(scores[place]) for each in fields]))
    return float(scores[last + 1]), float(high)


class _Field:
    """The scores of a tensor that may be the threshold, by their bits.

    Attributes:
        shard: Place of the local part in the tensor.
        above: Number of weights above the field, with those at +inf.
        zeros: Number of weights whose squares are 0, which have the LAMP score 0.
        width: Number of keys in a bin.
        scores: The LAMP score that a score at each edge would have, ascending.
    """

    def __init__(self, tensor: LampPart, dtype: torch.dtype) -> None:
        self.shard, self.above, self.zeros, self.width = tensor.part.shard, 0, 0, 0
        self.scores = np.zeros(0)
        self._tensor, self._dtype = tensor, dtype
        ends = torch.tensor([_find_least_root(dtype), torch.inf], dtype=dtype, device="cpu")
        self._low, self._high = _to_keys(ends, dtype).tolist()
        self._squares = 0.0  # the sum above the field
        self._edges, self._counts, self._sums = (np.zeros(0) for _ in range(3))

    @property
    def total(self) -> int:
        """Number of weights in the field and above."""
        return int(self._counts[0])

    def count_outside(self) -> Tensor:
        """Return the numbers of local weights at +inf, and of those whose squares are 0."""
        numbers = [self._tensor.protected.numel(), 0]
        for values in self._tensor.part.read(1):
            keys = _to_keys(values, self._dtype)
            numbers[1] += int(((values >= 0) & (keys < self._low)).sum())
        return torch.tensor(numbers, device="cpu")

    def count(self) -> Tensor:
        """Return the numbers of local weights in the bins, and the sums of their squares."""
        self.width = max(-(-(self._high - self._low) // _BINS), 1)
        counts = torch.zeros(2, _BINS, dtype=torch.float64, device="cpu")
        for values in self._tensor.part.read(1):
            self._add(counts, values, is_free=True)
        self._add(counts, self._tensor.protected, is_free=False)
        return counts.flatten()

    def take(self, row: Any) -> None:
        """Take over the bins of the whole tensor."""
        counts, squares = row.reshape(2, _BINS)
        self._edges = self._low + self.width * np.arange(_BINS)
        self._counts = np.append(np.cumsum(counts[::-1])[::-1], 0) + self.above
        self._sums = np.append(np.cumsum(squares[::-1])[::-1], 0) + self._squares
        inside = int(np.searchsorted(self._edges, self._high))
        self._edges = np.append(self._edges[:inside], self._high)
        self._counts, self._sums = self._counts[: inside + 1], self._sums[: inside + 1]
        values = self._read_values(self._edges).astype(np.float64)
        with np.errstate(divide="ignore", over="ignore"):
            self.scores = values * values / self._sums

    def least(self, score: float) -> int:
        """Return the least number of weights with this LAMP score or a higher one."""
        return int(self._counts[self._find(score)])

    def most(self, score: float) -> int:
        """Return the largest number of weights with this LAMP score or a higher one."""
        place = int(np.searchsorted(self.scores, score))
        # No LAMP score is above 1, also where the edge of an empty bin would have a higher score.
        is_exact = self.width == 1 or place == len(self.scores) or score > 1
        return self.least(score) if is_exact else int(self._counts[max(place - 1, 0)])

    def narrow(self, low: float, high: float) -> None:
        """Go on with the bins between a LAMP score that does not fit, and a score that fits."""
        place = self._find(high)
        lowest = max(int(np.searchsorted(self.scores, low)) - 1, 0)
        self._low, self._high = int(self._edges[min(lowest, place)]), int(self._edges[place])
        self.above, self._squares = int(self._counts[place]), float(self._sums[place])

    def divide(self, score: float) -> Threshold:
        """Return how a LAMP score divides the tensor, if each bin holds a single key."""
        higher = int(np.searchsorted(self.scores, score, side="right"))
        above = int(self._counts[min(higher, len(self._edges) - 1)])
        return Threshold(value=score, above=above, at=self.least(score) - above)

    def _find(self, score: float) -> int:
        """Return the place of the lowest edge with this LAMP score or a higher one."""
        return min(int(np.searchsorted(self.scores, score)), len(self._edges) - 1)

    def _add(self, counts: Tensor, values: Tensor, *, is_free: bool) -> None:
        """Add values to the numbers and sums of the bins."""
        values = values.reshape(-1).to(self._dtype)
        keys = _to_keys(values, self._dtype)
        inside = (values >= 0) & (keys >= self._low) & (keys < self._high)
        bins, squares = (keys[inside].long() - self._low) // self.width, values[inside].double()
        if is_free:
            counts[0] += torch.bincount(bins, minlength=_BINS).cpu()
        counts[1] += torch.bincount(bins, weights=squares * squares, minlength=_BINS).cpu()

    def _read_values(self, keys: Any) -> Any:
        """Return the values of keys."""
        return keys.astype(_KEYS[self._dtype][1]).view(_FLOATS[self._dtype])


def _find_least_root(dtype: torch.dtype) -> float:
    """Return the least value of a dtype whose square is not 0 in double precision."""
    if dtype == torch.float32:
        return 2.0**-149
    root = 2.0**-537.5  # the square is half of the least number
    return root if root * root > 0 else float(np.nextafter(root, 1.0))


def _to_keys(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return whole numbers in the order of values of at least 0; -0.0 is 0."""
    return (values.to(dtype) + 0.0).view(_KEYS[dtype][0])
