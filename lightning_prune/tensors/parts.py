"""Parts of tensors that are ranked, read in pieces."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from lightning_prune.tensors.precision import widen_to_single
from lightning_prune.tensors.shards import Shard


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How a search is divided; smaller sizes change the way, never the result.

    Args:
        piece: Values of a piece on a CPU: they stay in the cache from one operation to the next.
        launch: Values of a piece on an accelerator: they are worth a launch.
        sorted: At most this many values are sorted at once.
        held: At most this many values are held in memory instead of read again.
        spread: Standard deviations of a rank in a sample; beyond 3 of them lie 3 of 1,000 ranks.
        uses_numpy: Whether numpy compares values on a CPU, where torch is many times slower.
    """

    piece: int = 3 << 15
    launch: int = 1 << 24
    sorted: int = 1 << 16
    held: int = 1 << 19
    spread: float = 3.0
    uses_numpy: bool = True


SIZES = Sizes()


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A value that divides a tensor.

    Args:
        value: The value.
        above: Number of higher values in the whole tensor.
        at: Number of equal values in the whole tensor.
    """

    value: float
    above: int
    at: int

    def divides_at(self, keep: int) -> bool:
        """Whether the ``keep`` best are those above the value and some or all at it."""
        return self.above <= keep <= self.above + self.at


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """The local part of a tensor that is ranked, alone or with others.

    Args:
        read: Yields the values in the order of their indices, flat and in pieces (`slice_pieces`),
            at least an empty one, each time afresh. Given a stride, it yields values at about that
            distance. They are floating-point, without NaN; infinities are ranked.
        size: Number of values of the whole tensor.
        least: Least number to keep, whatever the other tensors hold.
        shard: Which part of the tensor is local; None if all of it is.
    """

    read: Callable[[int], Iterable[Tensor]]
    size: int
    least: int = 0
    shard: Shard | None = None

    @classmethod
    def of(
        cls,
        scores: Tensor,
        shard: Shard | None = None,
        size: int | None = None,
        sizes: Sizes = SIZES,
    ) -> "Part":
        """Return the part whose values lie in a tensor.

        Args:
            scores: The values, of any shape and floating dtype.
            shard: Which part of the tensor they are.
            size: Number of values of the whole tensor, if its shape does not say it.
            sizes: How they are divided into pieces.
        """
        size = size or (math.prod(shard.shape) if shard else scores.numel())

        def read(stride: int) -> Iterator[Tensor]:
            pieces = slice_pieces(scores, sizes)
            return (flatten_wide(scores[rows])[::stride] for rows in pieces)

        return cls(read=read, size=size, shard=shard)


def slice_pieces(tensor: Tensor, sizes: Sizes = SIZES) -> Iterator[slice]:
    """Yield slices along the first axis that are small beside the tensor."""
    rows = len(tensor)
    most = sizes.piece if tensor.device.type == "cpu" else sizes.launch
    step = max(most * rows // max(tensor.numel(), 1), 1)
    return (slice(start, start + step) for start in range(0, max(rows, 1), step))


def flatten_wide(scores: Tensor) -> Tensor:
    """Return the scores flat, in a dtype that numpy and torch can compare, without loss."""
    return widen_to_single(scores.detach().reshape(-1))


def to_array(values: Tensor, sizes: Sizes) -> Any:
    """Return values in the form that compares and picks fastest."""
    return values.numpy() if sizes.uses_numpy and values.device.type == "cpu" else values


def count_true(mask: Any) -> int:
    """Return the number of true entries of a numpy array or a tensor."""
    return int(np.count_nonzero(mask) if isinstance(mask, np.ndarray) else mask.sum())
