"""Thresholds of sharded tensors, by histograms summed over the processes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_prune.tensors.parts import Part, Sizes, to_array, to_tensor
from lightning_prune.tensors.shards import sum_pool

_DIGIT = 8  # each pass over the shards finds this many bits
_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


def search_histograms(pool: Sequence[Part], keep: int, sizes: Sizes) -> float:
    """Return the ``keep``-th highest value of sharded tensors, by histograms of the bits."""
    dtypes = (piece.dtype for part in pool for piece in part.read(1 << 40))
    dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    bits = dtype.itemsize * 8
    known, top, left = 0, bits, keep  # the bits of the key from `top` on are known
    while top:
        shift = max(top - _DIGIT, 0)
        counts = sum_pool(
            (_count_digits(part, dtype, known, top, shift, sizes), part.shard) for part in pool
        )
        digit = len(counts) - 1 - int((counts.flip(0).cumsum(0) < left).sum())
        left -= int(counts[digit + 1 :].sum())
        known, top = known << (top - shift) | digit, shift
    key = torch.tensor(known - (1 << bits - 1), dtype=_INTEGERS[dtype], device="cpu")
    return float(_order_bits(key).view(dtype))


def _count_digits(
    part: Part, dtype: torch.dtype, known: int, top: int, shift: int, sizes: Sizes
) -> Tensor:
    """Count the keys with the known higher bits, by the next digit."""
    digits = 1 << (top - shift)
    counts = torch.zeros(digits, dtype=torch.int64, device="cpu")
    bits = dtype.itemsize * 8
    for piece in part.read(1):
        # -0.0 ranks as +0.0.
        keys = to_array(_order_bits((piece.to(dtype) + 0.0).view(_INTEGERS[dtype])), sizes)
        if top < bits:
            keys = keys[keys >> top == known - (1 << bits - 1 >> top)]
        found = keys >> shift & digits - 1
        if top == bits:  # the highest digit holds the sign
            found = found ^ digits >> 1
        counts += torch.bincount(to_tensor(found), minlength=digits).cpu()
    return counts


def _order_bits(bits: Tensor) -> Tensor:
    """Return integers in the order of the floats with these bits; a second call undoes this."""
    integer = torch.iinfo(bits.dtype)
    return bits ^ (bits >> integer.bits - 1 & integer.max)
