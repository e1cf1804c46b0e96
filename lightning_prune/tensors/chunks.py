"""Chunks: the values of many tensors in flat copies, so that a launch serves many tensors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_prune.tensors.parts import Part, Sizes


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


def read_chunks(parts: Sequence[Part], dtype: torch.dtype, sizes: Sizes) -> Iterator[Chunk]:
    """Yield the values of all parts in order; a part can go on in the next chunk.

    Args:
        parts: The parts.
        dtype: The precision of all values.
        sizes: A chunk has about ``launch`` values.
    """
    pieces: list[Tensor] = []
    lengths: list[int] = []
    first = index = 0
    for index, part in enumerate(parts):
        lengths.append(0)
        for piece in part.read(1):
            is_elsewhere = bool(pieces) and piece.device != pieces[0].device
            if sum(lengths) and (is_elsewhere or sum(lengths) + len(piece) > sizes.launch):
                yield _join(pieces, dtype, first, lengths)
                pieces, lengths, first = [], [0], index
            pieces.append(piece)
            lengths[-1] += len(piece)
    yield _join(pieces, dtype, first, lengths)


def _join(pieces: Sequence[Tensor], dtype: torch.dtype, first: int, lengths: list[int]) -> Chunk:
    return Chunk(values=torch.cat(list(pieces)).to(dtype), first=first, lengths=tuple(lengths))
