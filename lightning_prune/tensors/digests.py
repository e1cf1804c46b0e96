"""Digests of weights, the same for any layout of the shards."""

import torch
from torch import Tensor

from lightning_prune.tensors.parts import slice_pieces
from lightning_prune.tensors.shards import Shard

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SLOPE = 0x9E3779B97F4A7C15 - (1 << 64)  # odd numbers whose bits look random, as in SplitMix64
_START = 0x94D049BB133111EB - (1 << 64)


def digest_weights(values: Tensor, shard: Shard | None) -> Tensor:
    r"""Return the digest of a tensor, or the part of a shard in it; digests of parts add up.

    .. math:: \sum_i (a i + b) \, v_i \bmod 2^{64}

    Here :math:`v_i` are the bits, as a signed whole number, of the value with the row-major index
    :math:`i` in the whole tensor. So another value or another place gives another digest.

    Args:
        values: The local part, with one dimension or more.
        shard: Place of the local part in the tensor; None for a whole tensor.

    Returns:
        A whole number of 64 bits on the device of the values; sums wrap around.

    Examples:
        >>> whole = torch.tensor([1.0, 2.0, 3.0])
        >>> bool(digest_weights(whole, None) == digest_weights(whole.flip(0), None))
        False
    """
    bits = values.contiguous().view(_INTEGERS[values.element_size()])
    digest = torch.zeros((), dtype=torch.int64, device=values.device)
    for rows in slice_pieces(values):
        places = _find_indices(values, shard, rows).mul_(_SLOPE).add_(_START)
        digest += places.mul_(bits[rows]).sum()
    return digest


def _find_indices(values: Tensor, shard: Shard | None, rows: slice) -> Tensor:
    """Return the row-major index in the whole tensor for each weight of some local rows."""
    if shard is not None:
        return shard.take_rows(rows).find_indices()
    width = values[0].numel() if len(values) else 0
    piece = values[rows]
    start = rows.start * width
    indices = torch.arange(start, start + piece.numel(), device=values.device)
    return indices.view(piece.shape)
