"""Chunks: the values of many tensors in flat copies, so that a launch serves many tensors."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_prune.tensors.parts import SIZES, Piece, Sizes
from lightning_prune.tensors.precision import widen_to_single


@dataclass(frozen=True, kw_only=True, eq=False)
class Chunk:
    """Values of successive parts, one after the other.

    Args:
        values: A flat copy of the values; it may be changed.
        first: Index of the first part.
        lengths: Number of values of the first part and of each part that follows.
    """

    values: Tensor
    first: int
    lengths: tuple[int, ...]

    @property
    def parts(self) -> slice:
        """The indices of the parts."""
        return slice(self.first, self.first + len(self.lengths))

    def split(self, values: Tensor) -> tuple[Tensor, ...]:
        """Return a view for each part, of values that lie as those of the chunk."""
        return torch.split(values, list(self.lengths))


def read_chunks(parts: Sequence[Iterable[Piece]], sizes: Sizes) -> Iterator[Chunk]:
    """Yield the values of all parts in order; a part can continue in the next chunk.

    Args:
        parts: The pieces of each part.
        sizes: A chunk has about ``launch`` values.
    """
    pieces: list[Piece] = []
    lengths: list[int] = []
    length = first = 0
    for index, part in enumerate(parts):
        lengths.append(0)
        for piece in part:
            number = piece.values.numel()
            is_full = length > 0 and length + number > sizes.launch
            if pieces and (is_full or not _are_alike(pieces[0], piece)):
                yield _join(pieces, first, lengths)
                pieces, lengths, length, first = [], [0], 0, index
            pieces.append(piece)
            lengths[-1] += number
            length += number
    yield _join(pieces, first, lengths)


def count_not_finite(parts: Sequence[Iterable[Piece]]) -> Tensor:
    """Return how many values of all parts together are NaN or infinite, without a wait."""
    counts = [
        (chunk.values * 0).count_nonzero()  # NaN and infinities do not become 0
        for chunk in read_chunks(parts, SIZES)
    ]
    return torch.stack([count.to(counts[0].device) for count in counts]).sum()


def _are_alike(piece: Piece, other: Piece) -> bool:
    """Whether scores are made of two pieces in the same way, and on the same device."""
    values, others = piece.values, other.values
    return (
        (values.device, values.dtype) == (others.device, others.dtype)
        and piece.transform == other.transform
        and (piece.pruned is None) == (other.pruned is None)
    )


def _join(pieces: Sequence[Piece], first: int, lengths: Sequence[int]) -> Chunk:
    values = widen_to_single(torch.cat([piece.values.reshape(-1) for piece in pieces]))
    if (transform := pieces[0].transform) is not None:
        values = transform(values)
    pruned = [piece.pruned.reshape(-1) for piece in pieces if piece.pruned is not None]
    if pruned:
        values = values.masked_fill_(torch.cat(pruned), -math.inf)
    return Chunk(values=values, first=first, lengths=tuple(lengths))
