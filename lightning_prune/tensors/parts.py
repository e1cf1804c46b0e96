"""Parts of tensors to rank, read in pieces."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_prune.tensors.precision import widen_to_single
from lightning_prune.tensors.shards import Shard


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the pieces of a search; they change the speed and memory, never the result.

    Args:
        piece: Number of values in a piece on a CPU; they stay in the cache between operations.
        launch: Number of values in a piece on an accelerator, and in a chunk of pieces: enough to
            be worth a launch, and so few that the cache of a large GPU holds them.
        sorted: Largest number of values to sort at once.
        held: Largest number of values to hold in memory instead of reading them again.
        near: Half the width of a bracket around a guess, as a share of the guess.
        spread: Half the width of a bracket, in standard deviations of a rank in a sample; beyond 3
            standard deviations lie 3 of 1,000 ranks.
        uses_numpy: Whether numpy compares values on a CPU, where torch is many times slower.
    """

    piece: int = 3 << 15
    launch: int = 1 << 23
    sorted: int = 1 << 16
    held: int = 1 << 19
    near: float = 0.02
    spread: float = 3.0
    uses_numpy: bool = True


SIZES = Sizes()

READS_AT_ONCE = ("cpu",)
"""Types of devices whose numbers the host reads without a wait: each tensor is searched alone."""

_CPU = torch.device("cpu")


def reads_at_once(device: torch.device) -> bool:
    """Whether the host reads a number of this device without waiting for other work."""
    return device.type in READS_AT_ONCE


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
        """Whether the ``keep`` best values are all values above, and equal values if needed."""
        return self.above <= keep <= self.above + self.at


def take_magnitudes(values: Tensor) -> Tensor:
    """Return the absolute values: the transform of a `Piece` that kernels know."""
    return values.abs()


class Piece(NamedTuple):
    """Values of a part from which scores are made.

    Attributes:
        values: The values, a view that takes no memory where that is possible.
        transform: Makes scores of values, value by value; None if the values are the scores.
        pruned: True where the score is -inf, in the same shape; None for nowhere.
    """

    values: Tensor
    transform: Callable[[Tensor], Tensor] | None = None
    pruned: Tensor | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """The local part of a tensor to rank, alone or with other tensors.

    Args:
        read: Yields the values in the order of their indices, flat and in pieces (`slice_pieces`);
            yields at least an empty piece. Each call starts again. The argument is a stride: the
            call yields values at about that distance. Values are floating-point, infinities
            allowed, without NaN.
        size: Number of values of the whole tensor.
        least: Least number to keep of this tensor, at any values of the other tensors.
        shard: Place of the local part in the tensor; None for a whole tensor.
        guess: A value near which the threshold is expected; None for no guess. A guess changes the
            speed, never the result.
        dtype: Precision of the values.
        device: Device of the values.
        read_raw: Yields the same values as views, before scores are made of them, so that many
            parts share the work; None if only ``read`` is there.
    """

    read: Callable[[int], Iterable[Tensor]]
    size: int
    least: int = 0
    shard: Shard | None = None
    guess: float | None = None
    dtype: torch.dtype = torch.float32
    device: torch.device = _CPU
    read_raw: Callable[[], Iterable[Piece]] | None = None

    @property
    def is_batched(self) -> bool:
        """Whether the tensor is searched together with others, so that no search waits."""
        return self.shard is None and not reads_at_once(self.device)

    @cached_property
    def views(self) -> Sequence[Piece] | None:
        """All values as they lie; None if ``read`` makes them."""
        return None if self.read_raw is None else list(self.read_raw())

    def pieces(self) -> Iterable[Piece]:
        """Return all values, as they lie if that is possible."""
        views = self.views
        return (Piece(values) for values in self.read(1)) if views is None else views

    @classmethod
    def of(
        cls,
        scores: Tensor,
        shard: Shard | None = None,
        size: int | None = None,
        sizes: Sizes = SIZES,
        *,
        pruned: Tensor | None = None,
    ) -> "Part":
        """Return the part with the values of a tensor in memory.

        Args:
            scores: The values, of any shape and floating dtype.
            shard: Place of the values in the whole tensor; None for a whole tensor.
            size: Number of values of the whole tensor; None to take the number from the shape.
            sizes: Sizes of the pieces.
            pruned: True where a value counts as -inf, shaped as the values; None for nowhere.
        """
        size = size or (math.prod(shard.shape) if shard else scores.numel())

        def read(stride: int) -> Iterator[Tensor]:
            for rows in slice_pieces(scores, sizes):
                piece = flatten_wide(scores[rows])[::stride]
                if pruned is not None:
                    piece = piece.masked_fill(pruned[rows].reshape(-1)[::stride], -math.inf)
                yield piece

        def read_raw() -> Iterator[Piece]:
            for rows in slice_pieces(scores, sizes):
                lacks = None if pruned is None else pruned[rows]
                yield Piece(scores[rows].detach(), pruned=lacks)

        dtype = torch.float64 if scores.dtype == torch.float64 else torch.float32
        return cls(
            read=read,
            size=size,
            shard=shard,
            dtype=dtype,
            device=scores.device,
            read_raw=read_raw,
        )

    def scale(self, factor: float) -> "Part":
        """Return the part with each value times a positive factor."""
        guess = None if self.guess is None else self.guess * factor
        return replace(
            self,
            read=lambda stride: (piece * factor for piece in self.read(stride)),
            read_raw=None,
            guess=guess,
        )


def find_dtype(parts: Sequence[Part]) -> torch.dtype:
    """Return the precision in which the values of all parts can be compared."""
    is_double = any(part.dtype == torch.float64 for part in parts)
    return torch.float64 if is_double else torch.float32


def slice_pieces(tensor: Tensor, sizes: Sizes = SIZES) -> Iterator[slice]:
    """Yield slices along the first axis, each with about the number of values of a piece."""
    rows = tensor.shape[0]
    most = sizes.piece if tensor.device.type == "cpu" else sizes.launch
    step = max(most * rows // max(tensor.numel(), 1), 1)
    return (slice(start, start + step) for start in range(0, max(rows, 1), step))


def count_pieces(*tensors: Tensor, join: Callable[..., Tensor] | None = None) -> Tensor:
    """Return the number of true values of a bool tensor, as a tensor; no wait and no large copy.

    torch counts in a copy with eight bytes for each value, so this counts in pieces.

    Args:
        tensors: The bool tensor, or tensors of the same shape that ``join`` turns into it.
        join: Makes a bool tensor of pieces of the tensors, value by value.
    """
    counts = []
    for rows in slice_pieces(tensors[0]):
        pieces = [tensor[rows] for tensor in tensors]
        counts.append((pieces[0] if join is None else join(*pieces)).count_nonzero())
    return torch.stack(counts).sum() if len(counts) > 1 else counts[0]


def flatten_wide(scores: Tensor) -> Tensor:
    """Flatten the scores, and widen them without loss to a dtype that numpy can compare."""
    return widen_to_single(scores.detach().reshape(-1))


def to_array(values: Tensor, sizes: Sizes) -> Any:
    """Return values as the type that compares and indexes fastest: a numpy array on a CPU."""
    return values.numpy() if sizes.uses_numpy and values.device.type == "cpu" else values


def to_tensor(values: Any) -> Tensor:
    """Return the tensor of a numpy array or a tensor, where the values are."""
    return torch.from_numpy(values) if isinstance(values, np.ndarray) else values


def count_true(mask: Any) -> int:
    """Count the true values of a bool numpy array or tensor."""
    return int(np.count_nonzero(mask) if isinstance(mask, np.ndarray) else mask.count_nonzero())
