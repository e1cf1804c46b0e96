"""Kernels that rank the values of many tensors in a few launches, on GPUs with Triton."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_prune.tensors.blocks import Blocks, enter_device, find_addresses
from lightning_prune.tensors.fused_bits import ELEMENTS, find_piece, order_bits, read_bits
from lightning_prune.tensors.parts import Piece, take_magnitudes
from lightning_prune.tensors.squares import FRACTION, HALF, SquareKeys

_BLOCK = 2048
_COPIES, _BINS = 32, 4096  # most copies of the bins of a part, and of those of all parts together
_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


class PieceTable:
    """Reads the pieces of several parts on a device by kernels, as they lie.

    Args:
        example: One of the pieces. All have the same dtype and transform, and no gaps.
        dtype: Precision in which values are compared.
        blocks: The pieces. The columns are the addresses of values and of forms, 0 for none; the
            part of each piece; and the place of the piece in the masks of all parts.
        lengths: Number of values of each part.
        is_aligned: Whether all addresses and numbers of values are multiples of 16.
    """

    digit = 8  # a pass copies nothing, and counts few digits faster

    def __init__(
        self,
        example: Piece,
        dtype: torch.dtype,
        blocks: Blocks,
        lengths: list[int],
        *,
        is_aligned: bool,
    ) -> None:
        self.length, self.device, self.dtype = len(lengths), blocks.device, dtype
        self._blocks, self._lengths = blocks, lengths
        self._form = {
            "element": ELEMENTS[example.values.dtype],
            "wide": ELEMENTS[dtype],
            "is_magnitude": example.transform is take_magnitudes,
            "is_aligned": is_aligned,
            "span": blocks.span,
            "block": _BLOCK,
        }

    @classmethod
    def of_pieces(cls, pieces: Sequence[Sequence[Piece]], dtype: torch.dtype) -> "PieceTable":
        """Return the table of the pieces of each part, which must stay where they are."""
        flat = [piece for of_part in pieces for piece in of_part]
        numbers = [piece.values.numel() for piece in flat]
        sizes = torch.tensor(numbers, device="cpu")
        values = find_addresses([piece.values for piece in flat])
        forms = find_addresses([piece.pruned for piece in flat])
        owners = [owner for owner, of_part in enumerate(pieces) for _ in of_part]
        places = sizes.cumsum(0) - sizes
        blocks = Blocks(sizes, [values, forms, owners, places], flat[0].values.device)
        lengths = [sum(piece.values.numel() for piece in of_part) for of_part in pieces]
        is_aligned = not any(number % 16 for number in (*numbers, *values, *forms))
        return cls(flat[0], dtype, blocks, lengths, is_aligned=is_aligned)

    @classmethod
    def of_rows(cls, scores: Tensor) -> "PieceTable":
        """Return the table of the rows of a matrix without gaps; each row is a part."""
        rows = torch.arange(len(scores), device="cpu")
        columns = scores.shape[1]
        values = scores.data_ptr() + rows * columns * scores.element_size()
        forms = torch.zeros_like(rows)
        of_rows = [values, forms, rows, rows * columns]
        blocks = Blocks(torch.full_like(rows, columns), of_rows, scores.device)
        dtype = torch.promote_types(scores.dtype, torch.float32)
        is_aligned = not (columns % 16 or scores.data_ptr() % 16)
        lengths = [columns] * len(scores)
        return cls(Piece(scores), dtype, blocks, lengths, is_aligned=is_aligned)

    def count_digits(self, base: Tensor, shift: int, digits: int) -> Tensor:
        """Count in each part the values with known higher bits, by the next digit."""
        counts = torch.zeros(len(base), digits, dtype=torch.int64, device=base.device)
        known = base.to(_INTEGERS[self.dtype])
        self._launch(_count_digits, known, counts, shift=shift, digits=digits)
        return counts

    def mark(self, values: Tensor, ties: Tensor) -> list[Tensor]:
        """Return the flat bool masks of all higher values, and of the first equal values."""
        return list(torch.split(self.mark_all(values, ties), self._lengths))

    def mark_all(self, values: Tensor, ties: Tensor) -> Tensor:
        """Return the masks of all parts, one after the other."""
        bounds = values.to(self.dtype).view(_INTEGERS[self.dtype])
        equal = torch.empty(self._blocks.programs, dtype=torch.int64, device=values.device)
        self._launch(_count_equal, bounds, equal)
        owners = self._blocks.columns[2][self._blocks.rows]
        of_parts = torch.zeros_like(ties).scatter_add_(0, owners, equal)
        before = equal.cumsum(0) - equal - (of_parts.cumsum(0) - of_parts)[owners]
        masks = torch.empty(sum(self._lengths), dtype=torch.bool, device=values.device)
        self._launch(_mark, bounds, ties[owners] - before, masks)
        return masks

    def sum_squares(self, limits: Tensor, keys: SquareKeys) -> Tensor:
        """Return the numbers of values in bins, and the sums of both halves of their squares.

        Args:
            limits: For each part the lowest key, the key above the highest, and the width of a bin
                as a power of 2, ``(parts, 3)``.
            keys: What a key and a square are.

        Returns:
            ``(parts, 3, bins)``.
        """
        # Values of a few exponents meet in a few bins, so that programs share them out to copies.
        copies = max(min(_COPIES, _BINS // self.length), 1)
        shape = copies, self.length, 3, keys.bins
        sums = torch.zeros(shape, dtype=torch.int64, device=limits.device)
        self._launch(
            _sum_squares,
            limits,
            sums,
            self.length,
            copies=copies,
            bins=keys.bins,
            unused=keys.unused,
            fraction=FRACTION,
            half=HALF,
        )
        return sums.sum(0)

    def _launch(self, kernel: Any, *arguments: Tensor | int, **constants: int) -> None:
        blocks = self._blocks
        with enter_device(self.device):
            kernel[(blocks.programs,)](
                blocks.rows,
                blocks.starts,
                blocks.sizes,
                *blocks.columns,
                *arguments,
                **self._form,
                **constants,
            )


@triton.jit  # type: ignore[untyped-decorator]
def _count_digits(  # type: ignore[no-untyped-def]
    rows,
    starts,
    sizes,
    values,
    forms,
    owners,
    targets,
    bases,
    counts,
    element: tl.constexpr,
    wide: tl.constexpr,
    is_magnitude: tl.constexpr,
    is_aligned: tl.constexpr,
    span: tl.constexpr,
    block: tl.constexpr,
    shift: tl.constexpr,
    digits: tl.constexpr,
):
    """Add the numbers of the values of a program, by digit, to those of the part."""
    row, start, size, source, form, has_form = find_piece(
        rows, starts, sizes, values, forms, element, is_aligned
    )
    owner = tl.load(owners + row)
    base = tl.load(bases + owner)
    found = tl.zeros([digits], dtype=tl.int32)
    for first in range(0, span, block):
        if start + first < size:
            places = start + first + tl.arange(0, block)
            is_inside = places < size
            bits = read_bits(source, form, has_form, places, is_inside, wide, is_magnitude)
            keys = (bits >> shift) - base
            is_known = is_inside & (keys >= 0) & (keys < digits)
            found += tl.histogram(keys.to(tl.int32), digits, mask=is_known)
    places_of_digits = counts + owner * digits + tl.arange(0, digits)
    tl.atomic_add(places_of_digits, found.to(tl.int64), mask=found > 0)


@triton.jit  # type: ignore[untyped-decorator]
def _count_equal(  # type: ignore[no-untyped-def]
    rows,
    starts,
    sizes,
    values,
    forms,
    owners,
    targets,
    bounds,
    counts,
    element: tl.constexpr,
    wide: tl.constexpr,
    is_magnitude: tl.constexpr,
    is_aligned: tl.constexpr,
    span: tl.constexpr,
    block: tl.constexpr,
):
    """Count the values of a program that are equal to the threshold of the part."""
    row, start, size, source, form, has_form = find_piece(
        rows, starts, sizes, values, forms, element, is_aligned
    )
    bound = tl.load(bounds + tl.load(owners + row))
    number = tl.zeros([block], dtype=tl.int32)
    for first in range(0, span, block):
        if start + first < size:
            places = start + first + tl.arange(0, block)
            is_inside = places < size
            bits = read_bits(source, form, has_form, places, is_inside, wide, is_magnitude)
            number += (is_inside & (bits == bound)).to(tl.int32)
    tl.store(counts + tl.program_id(0), tl.sum(number, axis=0).to(tl.int64))


@triton.jit  # type: ignore[untyped-decorator]
def _mark(  # type: ignore[no-untyped-def]
    rows,
    starts,
    sizes,
    values,
    forms,
    owners,
    targets,
    bounds,
    ties,
    masks,
    element: tl.constexpr,
    wide: tl.constexpr,
    is_magnitude: tl.constexpr,
    is_aligned: tl.constexpr,
    span: tl.constexpr,
    block: tl.constexpr,
):
    """Mark the values of a program above the threshold, and the first equal values."""
    row, start, size, source, form, has_form = find_piece(
        rows, starts, sizes, values, forms, element, is_aligned
    )
    bound = tl.load(bounds + tl.load(owners + row))
    target = masks.to(tl.pointer_type(tl.int8)) + tl.load(targets + row)
    left = tl.load(ties + tl.program_id(0))
    for first in range(0, span, block):
        if start + first < size:
            places = start + first + tl.arange(0, block)
            is_inside = places < size
            bits = read_bits(source, form, has_form, places, is_inside, wide, is_magnitude)
            is_higher = order_bits(bits) > order_bits(bound)
            is_equal = is_inside & (bits == bound)
            rank = tl.cumsum(is_equal.to(tl.int32), axis=0)
            is_kept = is_higher | (is_equal & (rank <= left))
            tl.store(target + places, is_kept.to(tl.int8), mask=is_inside)
            left -= tl.sum(is_equal.to(tl.int32), axis=0).to(tl.int64)


@triton.jit  # type: ignore[untyped-decorator]
def _sum_squares(  # type: ignore[no-untyped-def]
    rows,
    starts,
    sizes,
    values,
    forms,
    owners,
    targets,
    limits,
    sums,
    parts,
    element: tl.constexpr,
    wide: tl.constexpr,
    is_magnitude: tl.constexpr,
    is_aligned: tl.constexpr,
    span: tl.constexpr,
    block: tl.constexpr,
    copies: tl.constexpr,
    bins: tl.constexpr,
    unused: tl.constexpr,
    fraction: tl.constexpr,
    half: tl.constexpr,
):
    """Add the values of a program, and both halves of their squares, to the bins of the part."""
    row, start, size, source, form, has_form = find_piece(
        rows, starts, sizes, values, forms, element, is_aligned
    )
    owner = tl.load(owners + row)
    low = tl.load(limits + 3 * owner)
    high = tl.load(limits + 3 * owner + 1)
    width = tl.load(limits + 3 * owner + 2)
    table = sums + ((tl.program_id(0) % copies) * parts + owner) * 3 * bins
    one: tl.constexpr = 1023 << fraction
    for first in range(0, span, block):
        if start + first < size:
            places = start + first + tl.arange(0, block)
            is_inside = places < size
            read = read_bits(source, form, has_form, places, is_inside, wide, is_magnitude)
            bits = read.to(wide, bitcast=True).to(tl.float64).to(tl.int64, bitcast=True)
            keys = bits >> unused
            is_inside = is_inside & (keys >= low) & (keys < high)
            fractions = ((bits & ((1 << fraction) - 1)) | one).to(tl.float64, bitcast=True)
            squares = (fractions * fractions * (1 << fraction)).to(tl.int64)
            target = table + ((keys - low) >> width)
            tl.atomic_add(target, 1, mask=is_inside)
            tl.atomic_add(target + bins, squares >> half, mask=is_inside)
            tl.atomic_add(target + 2 * bins, squares & ((1 << half) - 1), mask=is_inside)
