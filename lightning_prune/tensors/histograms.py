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
    shards = [part.shard for part in pool]
    above = at = torch.zeros(1 if by_total else len(pool), dtype=torch.int64, device="cpu")
    device = pool[0].device
    higher = torch.zeros(len(pool), dtype=torch.int64, device=device)  # here, of each tensor
    while top:
        shift = max(top - _DIGIT, 0)
        found = [_count_digits(part, dtype, known, top, shift, sizes) for part in pool]
        local = torch.stack([counts.to(device) for counts in found])
        summed = _sum_pool(local, shards) if by_total else _sum_each(local, shards)
        digit, above, at = _choose_digit(summed, above, fits)
        higher += local[:, digit + 1 :].sum(1)
        equal = local[:, digit]
        known, top = known << (top - shift) | digit, shift
    if by_total:
        above, at = _sum_each(torch.stack([higher, equal], dim=1), shards).unbind(1)
    key = torch.tensor(known - (1 << bits - 1), dtype=_INTEGERS[dtype], device="cpu")
    value = float(_order_bits(key).view(dtype))
    return [
        Threshold(value=value, above=number, at=equal)
        for number, equal in zip(above.tolist(), at.tolist(), strict=True)
    ]


def _sum_each(local: Tensor, shards: Sequence[Shard | None]) -> Tensor:
    """Return the rows of local numbers, each summed over the processes."""
    return sum_by_tensor(list(zip(local, shards, strict=True)))


def _sum_pool(local: Tensor, shards: Sequence[Shard | None]) -> Tensor:
    """Return the sum of all rows over the processes, as a single row."""
    by_layout: dict[object, list[int]] = {}
    for row, shard in enumerate(shards):
        by_layout.setdefault(shard.groups if shard else (), []).append(row)
    sums = [(local[rows].sum(0), shards[rows[0]]) for rows in by_layout.values()]
    return sum_by_tensor(sums).sum(0, keepdim=True)


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
