"""Readers of the values of many tensors on an accelerator: by kernels, or in chunks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from lightning_prune.tensors.blocks import send
from lightning_prune.tensors.chunks import read_chunks
from lightning_prune.tensors.fusing import can_fuse
from lightning_prune.tensors.histograms import count_each
from lightning_prune.tensors.parts import Part, Piece, Sizes, find_dtype, take_magnitudes

if TYPE_CHECKING:
    from lightning_prune.tensors.fused_ranking import PieceTable

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LONG = 1024  # in shorter rows, counts by digit take more memory than the scores
_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


class Reader(Protocol):
    """Reads all values of several parts, and never lets the host wait.

    Attributes:
        length: Number of parts.
        device: Where numbers are handed over.
        dtype: Precision in which values are compared.
        digit: Number of bits that a pass is to find.
    """

    length: int
    device: torch.device
    dtype: torch.dtype
    digit: int

    def count_digits(self, base: Tensor, shift: int, digits: int) -> Tensor:
        """Count in each part the values with known higher bits, by the next digit.

        Args:
            base: What is subtracted from the bits of a value, which are shifted to the right, to
                leave the digit, ``(parts,)``.
            shift: Number of bits below the digit.
            digits: Number of digits, a power of 2.

        Returns:
            ``(parts, digits)``.
        """

    def mark(self, values: Tensor, ties: Tensor) -> list[Tensor]:
        """Return the flat bool masks of all higher values, and of the first equal values.

        Args:
            values: The threshold of each part, ``(parts,)``.
            ties: Number of equal values to mark in each part, ``(parts,)``.
        """


def make_reader(parts: Sequence[Part], sizes: Sizes) -> Reader:
    """Return the reader for whole tensors on accelerators, at least one.

    Args:
        parts: The tensors.
        sizes: Sizes of the chunks.
    """
    dtype = find_dtype(parts)
    alike: dict[object, list[int]] = {}
    for index, part in enumerate(parts):
        alike.setdefault(_find_kind(part), []).append(index)
    readers = []
    for kind, indices in alike.items():
        chosen = [parts[index] for index in indices]
        readers.append(ChunkReader(chosen, dtype, sizes) if kind is None else _fuse(chosen, dtype))
    if len(readers) == 1:
        return readers[0]
    return _MixedReader(parts[0].device, readers, list(alike.values()))


def make_table(parts: Sequence[Part]) -> "PieceTable | None":
    """Return the table of parts that kernels read together; None if they cannot."""
    kinds = {_find_kind(part) for part in parts}
    return None if None in kinds or len(kinds) > 1 else _fuse(parts, find_dtype(parts))


def make_row_table(scores: Tensor) -> "PieceTable | None":
    """Return the table of the rows of a matrix; None if they are short, or kernels cannot read."""
    if scores.shape[1] < _LONG or not is_known(Piece(scores)):
        return None
    from lightning_prune.tensors.fused_ranking import PieceTable  # Triton takes long to import

    return PieceTable.of_rows(scores)


class ChunkReader:
    """Reads parts on any accelerator: copies the values into chunks, so that launches are shared.

    Args:
        parts: The parts.
        dtype: Precision in which values are compared.
        sizes: Sizes of the chunks.
    """

    digit = 11  # a pass copies all values, so there are to be few

    def __init__(self, parts: Sequence[Part], dtype: torch.dtype, sizes: Sizes) -> None:
        self.length, self.device, self.dtype = len(parts), parts[0].device, dtype
        self._parts, self._sizes = parts, sizes

    def count_digits(self, base: Tensor, shift: int, digits: int) -> Tensor:
        """Count in each part the values with known higher bits, by the next digit."""
        counts = torch.zeros(self.length, digits, dtype=torch.int64, device=base.device)
        known = base.to(_INTEGERS[self.dtype])
        for chunk in read_chunks([part.pieces() for part in self._parts], self._sizes):
            # -0.0 ranks as +0.0.
            bits = chunk.values.to(self.dtype).add_(0.0).view(known.dtype)
            pieces = chunk.split(bits.bitwise_right_shift_(shift))
            torch._foreach_sub_(pieces, known[chunk.parts].to(bits.device).unbind())
            found = torch.stack([count_each(piece, digits) for piece in pieces])
            counts[chunk.parts] += found.to(counts.device, torch.int64)
        return counts

    def mark(self, values: Tensor, ties: Tensor) -> list[Tensor]:
        """Return the flat bool masks of all higher values, and of the first equal values."""
        found: list[list[Tensor]] = [[] for _ in self._parts]
        for chunk in read_chunks([part.pieces() for part in self._parts], self._sizes):
            mask, equal, early = (torch.empty_like(chunk.values, dtype=torch.bool) for _ in "123")
            ranks = torch.empty_like(chunk.values, dtype=torch.int32)
            bounds = values[chunk.parts].to(mask.device).unbind()
            left = ties[chunk.parts].to(mask.device).unbind()
            pieces = zip(
                *map(chunk.split, (chunk.values.to(values.dtype), mask, equal, ranks, early)),
                strict=True,
            )
            for piece, bound, number in zip(pieces, bounds, left, strict=True):
                scores, is_higher, is_equal, rank, is_early = piece
                torch.gt(scores, bound, out=is_higher)
                torch.eq(scores, bound, out=is_equal)
                torch.cumsum(is_equal, 0, dtype=torch.int32, out=rank)
                torch.le(rank, number, out=is_early)
            ties[chunk.parts.stop - 1] -= is_equal.sum()  # the last part may go on
            mask |= equal.logical_and_(early)
            for index, of_part in enumerate(chunk.split(mask), chunk.first):
                found[index].append(of_part)
        return [torch.cat(masks) if len(masks) > 1 else masks[0] for masks in found]


class _MixedReader:
    """Lets each of several readers read its parts.

    Args:
        device: Where numbers are handed over.
        readers: The readers.
        indices: The indices of the parts of each reader.
    """

    def __init__(
        self, device: torch.device, readers: Sequence[Reader], indices: Sequence[Sequence[int]]
    ) -> None:
        self.length, self.device = sum(map(len, indices)), device
        self.dtype, self.digit = readers[0].dtype, min(reader.digit for reader in readers)
        self._readers, self._indices = readers, indices
        self._places = [send(each, torch.int64, device) for each in indices]

    def count_digits(self, base: Tensor, shift: int, digits: int) -> Tensor:
        """Count in each part the values with known higher bits, by the next digit."""
        counts = torch.zeros(self.length, digits, dtype=torch.int64, device=base.device)
        for reader, places in zip(self._readers, self._places, strict=True):
            found = reader.count_digits(base[places].to(reader.device), shift, digits)
            counts.index_copy_(0, places, found.to(base.device))
        return counts

    def mark(self, values: Tensor, ties: Tensor) -> list[Tensor]:
        """Return the flat bool masks of all higher values, and of the first equal values."""
        masks: dict[int, Tensor] = {}
        for reader, indices, places in zip(self._readers, self._indices, self._places, strict=True):
            numbers = values[places].to(reader.device), ties[places].to(reader.device)
            masks.update(zip(indices, reader.mark(*numbers), strict=True))
        return [masks[index] for index in range(self.length)]


def _find_kind(part: Part) -> object:
    """Return what parts share that a kernel reads in one launch; None where no kernel can."""
    views = part.views
    if not views or not all(map(is_known, views)):
        return None
    return views[0].values.device, views[0].values.dtype, views[0].transform


def is_known(piece: Piece) -> bool:
    """Whether kernels read a piece as it lies, and know how scores are made of it."""
    values, pruned = piece.values, piece.pruned
    has_scores = piece.transform in (None, take_magnitudes) and values.dtype in _FLOATS
    has_form = pruned is None or (can_fuse(pruned) and pruned.device == values.device)
    return has_scores and has_form and can_fuse(values)


def _fuse(parts: Sequence[Part], dtype: torch.dtype) -> "PieceTable":
    from lightning_prune.tensors.fused_ranking import PieceTable  # Triton takes long to import

    return PieceTable.of_pieces([part.views or () for part in parts], dtype)
