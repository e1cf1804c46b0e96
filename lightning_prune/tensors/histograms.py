"""Thresholds of sharded tensors, by histograms summed over the processes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_prune.tensors.parts import (
    Part,
    Sizes,
    Threshold,
    find_dtype,
    reads_at_once,
    to_array,
    to_tensor,
)
from lightning_prune.tensors.samples import Fits, find_last
from lightning_prune.tensors.shards import Shard, sum_by_tensor

_DIGIT = 8  # each pass over the shards finds this many bits
_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


def search_histograms(
    pool: Sequence[Part], fits: Fits, sizes: Sizes, *, by_total: bool
) -> list[Threshold]:
    """Find the highest value of sharded tensors that does not fit, by histograms of the bits.

    The histograms are summed over the processes before ``fits`` is asked, so all processes find
    the same.

    Args:
        pool: The tensors.
        fits: Whether numbers to keep fit.
        sizes: Sizes of the pieces of the search.
        by_total: Whether only the sum of the numbers decides. Then a pass sends a histogram of the
            pool instead of a histogram of each tensor.
    """
    dtype = find_dtype(pool)
    bits = dtype.itemsize * 8
    known, top = 0, bits  # the bits of the key from `top` on are known
    above = at = torch.zeros(1 if by_total else len(pool), dtype=torch.int64, device="cpu")
    divided = []  # the local numbers above and at the digits, of each tensor
    while top:
        shift = max(top - _DIGIT, 0)
        counts = [(_count_digits(p, dtype, known, top, shift, sizes), p.shard) for p in pool]
        summed = _sum_pool(counts) if by_total else sum_by_tensor(counts)
        digit, above, at = _choose_digit(summed, above, fits)
        divided.append([torch.stack([of[digit + 1 :].sum(), of[digit]]) for of, _ in counts])
        known, top = known << (top - shift) | digit, shift
    if by_total:
        above, at = _sum_divided(pool, divided)
    key = torch.tensor(known - (1 << bits - 1), dtype=_INTEGERS[dtype], device="cpu")
    value = float(_order_bits(key).view(dtype))
    return [
        Threshold(value=value, above=number, at=equal)
        for number, equal in zip(above.tolist(), at.tolist(), strict=True)
    ]


def _sum_pool(counts: Sequence[tuple[Tensor, Shard | None]]) -> Tensor:
    """Return the sum over all tensors and processes as a single row."""
    by_layout: dict[object, list[tuple[Tensor, Shard | None]]] = {}
    for count, shard in counts:
        by_layout.setdefault(shard.groups if shard else (), []).append((count, shard))
    sums = []
    for layout in by_layout.values():
        device = layout[0][0].device
        local = torch.stack([count.to(device) for count, _ in layout]).sum(0)
        sums.append((local, layout[0][1]))
    return sum_by_tensor(sums).sum(0, keepdim=True)


def _sum_divided(
    pool: Sequence[Part], divided: Sequence[Sequence[Tensor]]
) -> tuple[Tensor, Tensor]:
    """Return the numbers of each tensor above a key and at it.

    Args:
        pool: The tensors.
        divided: For each digit of the key, the local numbers of each tensor above and at the digit.
    """
    counts = []
    for part, of_digits in zip(pool, zip(*divided, strict=True), strict=True):
        above = torch.stack(of_digits)[:, 0].sum()
        counts.append((torch.stack([above, of_digits[-1][1]]), part.shard))
    above, at = sum_by_tensor(counts).unbind(1)
    return above, at


def _choose_digit(counts: Tensor, above: Tensor, fits: Fits) -> tuple[int, Tensor, Tensor]:
    """Return the highest digit that does not fit, and the numbers of keys above it and at it.

    Args:
        counts: Number of keys with each digit, ``(tensors, digits)``.
        above: Number of keys of each tensor above all digits.
        fits: Whether numbers to keep fit.
    """
    downwards = counts.flip(1)
    higher = above[:, None] + downwards.cumsum(1) - downwards
    place = find_last(range(counts.shape[1]), lambda place: fits(higher[:, place].tolist()))
    return counts.shape[1] - 1 - place, higher[:, place], downwards[:, place]


def count_each(keys: Tensor, digits: int) -> Tensor:
    """Count the keys from 0 to ``digits - 1`` by value, and ignore all others, without a wait.

    `torch.histc` puts the upper bound into the last bin. Twice the bins keep it away from a digit,
    and the width of a bin is exactly 1.

    Args:
        keys: Whole numbers.
        digits: Number of values, a power of 2.

    Examples:
        >>> count_each(torch.tensor([0, 3, 3, 4, 8, -1]), 4).tolist()
        [1, 0, 0, 2]
    """
    numbers = keys if keys.is_cuda else keys.float()  # elsewhere torch counts floats only
    bins = 2 * digits
    return torch.histc(numbers, bins=bins, min=0, max=bins)[:digits].to(torch.int64)


def _count_digits(
    part: Part, dtype: torch.dtype, known: int, top: int, shift: int, sizes: Sizes
) -> Tensor:
    """Count the keys with the known higher bits, by the next digit, where the values are."""
    digits = 1 << (top - shift)
    bits = dtype.itemsize * 8
    # The highest digit holds the sign.
    base = -(digits >> 1) if top == bits else known - (1 << bits - 1 >> top) << top - shift
    counts = torch.zeros(digits, dtype=torch.int64, device="cpu")
    for piece in part.read(1):
        # -0.0 ranks as +0.0.
        ordered = _order_bits((piece.to(dtype) + 0.0).view(_INTEGERS[dtype]))
        if not reads_at_once(piece.device):
            counts = counts.to(piece.device, non_blocking=True)
            counts += count_each((ordered >> shift) - base, digits)
            continue
        keys = (to_array(ordered, sizes) >> shift) - base
        if top < bits:
            keys = keys[(keys >= 0) & (keys < digits)]
        counts += torch.bincount(to_tensor(keys), minlength=digits)
    return counts


def _order_bits(bits: Tensor) -> Tensor:
    """Return integers in the order of the floats with these bits; a second call undoes this."""
    integer = torch.iinfo(bits.dtype)
    return bits ^ (bits >> integer.bits - 1 & integer.max)
