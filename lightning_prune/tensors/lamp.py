"""LAMP: the scores of all tensors are compared by histograms of their squares."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lightning_prune.tensors.blocks import send
from lightning_prune.tensors.parts import Part, Threshold, find_dtype, reads_at_once
from lightning_prune.tensors.readers import make_table
from lightning_prune.tensors.samples import Fits, find_last
from lightning_prune.tensors.shards import sum_by_tensor
from lightning_prune.tensors.squares import HALF, KEYS, SquareKeys, square

if TYPE_CHECKING:
    from lightning_prune.tensors.fused_ranking import PieceTable

_SLICE = 1 << 20  # the number of values that are counted at once


@dataclass(frozen=True, kw_only=True, eq=False)
class LampPart:
    """The local part of a tensor whose scores LAMP compares with those of other tensors.

    Args:
        part: The scores to rank: at least 0, -inf where an atom must not stay, and +inf where it
            is kept at any score.
        held: Number of scores at +inf in the whole tensor.
        allowed: Number of scores above -inf in the whole tensor.
        protected: The scores of the atoms at +inf, which are in the sums of squares, too, and -inf
            elsewhere; None if no atom is at +inf.
    """

    part: Part
    held: int
    allowed: int
    protected: Part | None = None


def find_lamp_thresholds(pool: Sequence[LampPart], fits: Fits) -> list[Threshold]:
    r"""Find the highest LAMP score that does not fit, and how it divides each tensor.

    The LAMP score of a score s in a tensor is

    .. math:: \frac{s^2}{\sum_{v \ge s} v^2}

    It never falls as s grows. So for the edge of a bin, the number of scores above the edge is the
    number of LAMP scores that are at least the edge's. A pass sums up, over all processes, the
    numbers and the squares in the bins of each tensor. Then each tensor goes on with the bins
    between a LAMP score that fits and a score that does not. The host waits once a pass for all
    tensors. In single precision there are about five passes, and a pass sends 12 KiB for each
    tensor.

    Squares are added up as whole numbers, so a sum does not depend on the order. A LAMP score is
    the exact quotient, rounded to double precision. So all devices, and any number of processes,
    find the same. In double precision, squares are rounded first, and a score below
    :math:`2^{-538}` counts as 0.

    Args:
        pool: The tensors.
        fits: Whether numbers to keep fit. It must be true of the numbers at +inf, and false of all
            numbers of scores above -inf.
    """
    parts = [each.part for each in pool]
    keys = KEYS[find_dtype(parts)]
    fields = [_Field(each, keys) for each in pool]
    are_free = all(each.protected is None for each in pool)
    table = make_table(parts) if are_free else None
    _fill(fields, table)
    zeros = [each.allowed - field.total for each, field in zip(pool, fields, strict=True)]
    if fits([field.total for field in fields]):
        return [
            Threshold(value=0.0, above=field.total, at=number)
            for field, number in zip(fields, zeros, strict=True)
        ]
    while True:
        low, high = _bracket(fields, fits)
        if all(field.is_fine for field in fields):
            return [field.divide(low) for field in fields]
        for field in fields:
            field.narrow(low, high)
        _fill(fields, table)


def _fill(fields: Sequence["_Field"], table: "PieceTable | None") -> None:
    """Sum up the bins of all tensors over all processes.

    Args:
        fields: The scores of each tensor.
        table: Sums up for all tensors in a launch; None if no kernel can.
    """
    limits = [field.begin_pass() for field in fields]
    if table is None:
        rows = [field.count() for field in fields]
    else:
        sent = send(limits, torch.int64, table.device)
        rows = list(table.sum_squares(sent, fields[0].keys).flatten(1).unbind())
    pairs = list(zip(rows, (field.shard for field in fields), strict=True))
    for field, row in zip(fields, sum_by_tensor(pairs).numpy(), strict=True):
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
    """The scores of a tensor that may be the threshold, by their keys.

    Attributes:
        shard: Place of the local part in the tensor.
        keys: What a key and a square are.
        above: Number of weights above the field, with those at +inf.
        scores: The LAMP score that a score at each edge would have, ascending.
    """

    def __init__(self, tensor: LampPart, keys: SquareKeys) -> None:
        self.shard, self.above = tensor.part.shard, tensor.held
        self.scores = np.zeros(0)
        self._tensor, self.keys = tensor, keys
        self._low, self._high = keys.least << keys.shift, keys.end << keys.shift
        self._width = keys.shift  # of a bin, as a power of 2
        self._squares = 0  # the sum above the field
        self._edges, self._counts, self._sums = (np.zeros(0, dtype=np.int64) for _ in range(3))

    @property
    def total(self) -> int:
        """Number of weights in the field and above."""
        return int(self._counts[0])

    @property
    def is_fine(self) -> bool:
        """Whether each bin holds a single key."""
        return self._width == 0

    def begin_pass(self) -> tuple[int, int, int]:
        """Return the lowest key, the key above the highest, and a bin's width as a power of 2."""
        size = self._high - self._low
        self._width = min((max(size - 1, 0) // self.keys.bins).bit_length(), self.keys.shift)
        return self._low, self._high, self._width

    def count(self) -> Tensor:
        """Return the numbers of local weights in the bins, and the sums of their squares."""
        table = torch.zeros(
            3, self.keys.bins + 1, dtype=torch.int64, device=self._tensor.part.device
        )
        for values in self._tensor.part.read(1):
            self._add(table, values, is_free=True)
        for values in self._tensor.protected.read(1) if self._tensor.protected else ():
            self._add(table, values, is_free=False)
        return table[:, :-1].flatten()

    def take(self, row: Any) -> None:
        """Take over the bins of the whole tensor."""
        bins = self._high - self._low >> self._width
        counts, upper, lower = row.reshape(3, -1)[:, :bins]
        self._edges = self._low + (np.arange(bins + 1) << self._width)
        self._counts = np.append(np.cumsum(counts[::-1])[::-1], 0) + self.above
        exponents = (self._edges >> self.keys.shift) - self.keys.least
        shifts = (2 * exponents).astype(object)  # Python's whole numbers have any size
        squares = (upper.astype(object) << HALF) + lower << shifts[:-1]
        self._sums = np.append(np.cumsum(squares[::-1])[::-1], 0) + self._squares
        of_edges = square(self._edges << self.keys.unused, np.float64).astype(np.int64)
        pairs = zip(of_edges.astype(object) << shifts, self._sums, strict=True)
        self.scores = np.array([square / total if total else np.inf for square, total in pairs])

    def least(self, score: float) -> int:
        """Return the least number of weights with this LAMP score or a higher one."""
        return int(self._counts[self._find(score)])

    def most(self, score: float) -> int:
        """Return the largest number of weights with this LAMP score or a higher one."""
        place = int(np.searchsorted(self.scores, score))
        # No LAMP score is above 1; the edges above all values would have an infinite score.
        is_exact = self.is_fine or place == len(self.scores) or score > 1
        return self.least(score) if is_exact else int(self._counts[max(place - 1, 0)])

    def narrow(self, low: float, high: float) -> None:
        """Go on between a LAMP score that does not fit, and a score that fits; skip gaps."""
        highest, lowest = self._find(high), max(int(np.searchsorted(self.scores, low)) - 1, 0)
        falling = -self._counts
        place = int(np.searchsorted(falling, falling[highest]))
        lowest = int(np.searchsorted(falling, falling[min(lowest, highest)], side="right")) - 1
        self._low, self._high = int(self._edges[min(lowest, place)]), int(self._edges[place])
        self.above, self._squares = int(self._counts[place]), self._sums[place]

    def divide(self, score: float) -> Threshold:
        """Return how a LAMP score divides the tensor, if each bin holds a single key."""
        higher = int(np.searchsorted(self.scores, score, side="right"))
        above = int(self._counts[min(higher, len(self._edges) - 1)])
        return Threshold(value=score, above=above, at=self.least(score) - above)

    def _find(self, score: float) -> int:
        """Return the place of the lowest edge with this LAMP score or a higher one."""
        return min(int(np.searchsorted(self.scores, score)), len(self._edges) - 1)

    def _add(self, table: Tensor, values: Tensor, *, is_free: bool) -> None:
        """Add values to the numbers and sums of the bins; the last bin is for all other values."""
        for piece in torch.split(values, _SLICE):
            bits = (piece.double() + 0.0).view(torch.int64)  # -0.0 is 0; -inf is below 0
            keys = bits >> self.keys.unused
            inside = (keys >= self._low) & (keys < self._high)
            if reads_at_once(piece.device):
                bits, bins = bits[inside], keys[inside] - self._low >> self._width
            else:
                bins = torch.where(inside, keys - self._low >> self._width, table.shape[1] - 1)
            squares = square(bits, torch.float64).to(torch.int64)
            if is_free:
                table[0].scatter_add_(0, bins, torch.ones_like(bins))
            table[1].scatter_add_(0, bins, squares >> HALF)
            table[2].scatter_add_(0, bins, squares & (1 << HALF) - 1)
