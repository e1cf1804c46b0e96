"""The only selection code: exactly the k best, of one tensor, of several or of shards."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from lightning_prune._distributed import Shard, total, total_of_pool

_DIGIT_BITS = 16


def number_kept(atoms: int, sparsity: float) -> int:
    """Return how many of ``atoms`` are kept at ``sparsity``: the one rounding rule.

    Half to even, in double precision: ``round(atoms * (1 - sparsity))``.

    Examples:
        >>> [number_kept(n, 0.5) for n in (1, 2, 3)]
        [0, 1, 2]
    """
    return round(atoms * (1 - sparsity))


def best(scores: Tensor, keep: int) -> Tensor:
    """Return the bool mask of the ``keep`` highest scores; of equal ones the lower index.

    Args:
        scores: Scores of any shape and floating dtype, without NaN; infinities are ranked.
        keep: Number of entries to keep, in ``[0, scores.numel()]``.

    Examples:
        >>> best(torch.tensor([1.0, 2.0, 1.0]), 2).tolist()
        [True, True, False]
    """
    if keep <= 0:
        return torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    if keep >= scores.numel():
        return torch.ones(scores.shape, dtype=torch.bool, device=scores.device)
    flat = _comparable(scores).flatten()
    threshold = _kth_highest(flat, keep)
    mask = flat > threshold
    ties = (flat == threshold).nonzero().flatten()
    mask[ties[: keep - int(mask.sum())]] = True
    return mask.view(scores.shape)


def best_of_rows(scores: Tensor, keep: Tensor) -> Tensor:
    """Return the bool mask of the ``keep[i]`` highest scores of each row ``i``, ties as in `best`.

    Args:
        scores: ``(rows, columns)``.
        keep: Number to keep in each row, ``(rows,)``.

    Examples:
        >>> best_of_rows(torch.tensor([[1.0, 3.0], [2.0, 2.0]]), torch.tensor([1, 1])).tolist()
        [[False, True], [True, False]]
    """
    order = _comparable(scores).argsort(dim=1, descending=True, stable=True)
    ranks = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    kept = ranks < keep[:, None]
    return torch.zeros_like(kept).scatter_(1, order, kept)


def best_of_pool(
    pool: Sequence[Tensor], keep: int, shards: Sequence[Shard | None] | None = None
) -> list[int]:
    """Return how many of the ``keep`` highest scores of all tensors together are in each tensor.

    The scores are not put side by side: their order-preserving bit patterns are counted into
    histograms, 16 bits a pass from the highest down, so the extra memory is that of the largest
    tensor, and only counts travel between shards. Of equal scores the earlier tensor comes first.

    Args:
        pool: The scores of each tensor, or of the part that is here.
        keep: How many to keep of all, in the whole tensors.
        shards: Which part is here of each; by default all of each.

    Examples:
        >>> best_of_pool([torch.tensor([1.0, 2.0]), torch.tensor([2.0, 0.0, 2.0])], 2)
        [1, 1]
    """
    shards = shards or [None] * len(pool)
    sizes = [
        math.prod(shard.shape) if shard else scores.numel()
        for scores, shard in zip(pool, shards, strict=True)
    ]
    if keep <= 0:
        return [0] * len(pool)
    if keep >= sum(sizes):
        return sizes
    bits = _bits(pool)
    keys = [partial(_sort_keys, scores, bits) for scores in pool]
    threshold, left = _kth_highest_key(keys, bits, keep, shards)
    survivors = []
    for its_keys, shard in zip(keys, shards, strict=True):
        above_and_at = torch.stack(
            [(its_keys() > threshold).sum(), (its_keys() == threshold).sum()]
        )
        above, at = total(above_and_at, shard).tolist()
        ties = min(left, at)
        survivors.append(above + ties)
        left -= ties
    return survivors


def best_here(scores: Tensor, keep: int, shard: Shard | None) -> int:
    """Return how many of the ``keep`` highest scores of a tensor are in the part that is here.

    They are the highest of that part, because its entries come in the order of the whole.

    Args:
        scores: The scores of the part.
        keep: How many to keep of the whole tensor.
        shard: Which part is here; None if it is all.
    """
    if shard is None or keep <= 0:
        return keep
    if keep >= math.prod(shard.shape):
        return scores.numel()
    bits = _bits([scores])
    keys = _sort_keys(scores, bits)
    threshold, left = _kth_highest_key([lambda: keys], bits, keep, [shard])
    above, at = int((keys > threshold).sum()), keys == threshold
    if int(total(at.sum(), shard)) == left:
        return above + int(at.sum())
    order = -shard.indices().flatten()[at]  # of ties the lower index
    last, _ = _kth_highest_key([lambda: order], 64, left, [shard])
    return above + int((order >= last).sum())


def _kth_highest_key(
    keys: Sequence[Callable[[], Tensor]], bits: int, k: int, shards: Sequence[Shard | None]
) -> tuple[int, int]:
    """Return the ``k``-th highest key (from 1), and how many that equal it are among the ``k``."""
    threshold, left = 0, k
    for shift in range(bits - _DIGIT_BITS, -1, -_DIGIT_BITS):
        top = shift + _DIGIT_BITS  # bits above `top` are known
        known = threshold >> top if top < bits else None
        counts = total_of_pool(
            (_digit_counts(its_keys(), shift, top, known), shard)
            for its_keys, shard in zip(keys, shards, strict=True)
        )
        from_above = counts.flip(0).cumsum(0)
        digit = (1 << _DIGIT_BITS) - 1 - int((from_above < left).sum())
        left -= int(from_above[-1 - digit]) - int(counts[digit])
        if known is None:
            digit -= 1 << (_DIGIT_BITS - 1)
        threshold += digit << shift
    return threshold, left


def _digit_counts(keys: Tensor, shift: int, top: int, known: int | None) -> Tensor:
    """Return how many keys, of those with the known higher bits, have each digit."""
    if known is not None:
        keys = keys[keys >> top == known]
    digits = (keys >> shift & ((1 << _DIGIT_BITS) - 1)).to(torch.int32)
    if known is None:  # the sign makes the highest digit signed
        digits = digits ^ (1 << (_DIGIT_BITS - 1))
    return torch.bincount(digits, minlength=1 << _DIGIT_BITS)


def _kth_highest(flat: Tensor, k: int) -> Tensor:
    """Return the ``k``-th highest value (from 1), by whatever is fastest on the device."""
    if flat.device.type != "cpu":
        return flat.kthvalue(flat.numel() - k + 1).values
    # What is pruned scores -inf; a partition of many equal values is many times slower.
    open_to_choice = flat[flat > -math.inf]
    if k > open_to_choice.numel():
        return flat.new_tensor(-math.inf)
    rank = open_to_choice.numel() - k
    return torch.from_numpy(np.partition(open_to_choice.numpy(), rank))[rank]


def _comparable(scores: Tensor) -> Tensor:
    """Return the scores in a dtype that numpy and torch can compare, without loss."""
    return scores.detach() if scores.dtype == torch.float64 else scores.detach().float()


def _bits(pool: Sequence[Tensor]) -> int:
    return 64 if any(scores.dtype == torch.float64 for scores in pool) else 32


def _sort_keys(scores: Tensor, bits: int) -> Tensor:
    """Return the scores as flat integers of ``bits`` bits in the same order, -0.0 as +0.0."""
    if bits == 64:
        keys = (scores.detach().double().flatten() + 0.0).view(torch.int64)
    else:
        keys = (scores.detach().float().flatten() + 0.0).view(torch.int32)
    return keys ^ (keys >> (bits - 1) & torch.iinfo(keys.dtype).max)
