"""The only selection code: exactly the k best, of one tensor or of several, ties by index."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

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


def best_of_pool(pool: Sequence[Tensor], keep: int) -> list[int]:
    """Return how many of each tensor are among the ``keep`` highest scores of all.

    The tensors are never concatenated: their order-preserving bit patterns are counted into
    histograms, 16 bits a pass from the highest down, so the extra memory is that of the largest
    tensor and only counts would have to travel between shards. Of equal scores the earlier tensor
    comes first.

    Examples:
        >>> best_of_pool([torch.tensor([1.0, 2.0]), torch.tensor([2.0, 0.0, 2.0])], 2)
        [1, 1]
    """
    if keep <= 0:
        return [0] * len(pool)
    if keep >= sum(scores.numel() for scores in pool):
        return [scores.numel() for scores in pool]
    bits = 64 if any(scores.dtype == torch.float64 for scores in pool) else 32
    threshold, left = 0, keep  # `left` entries are still to be taken among those at `threshold`
    for shift in range(bits - _DIGIT_BITS, -1, -_DIGIT_BITS):
        top = shift + _DIGIT_BITS  # bits above `top` are known
        counts = torch.zeros(1 << _DIGIT_BITS, dtype=torch.int64)
        for scores in pool:
            keys = _sort_keys(scores, bits)
            if top < bits:
                keys = keys[keys >> top == threshold >> top]
            digits = (keys >> shift & ((1 << _DIGIT_BITS) - 1)).to(torch.int32)
            if shift == bits - _DIGIT_BITS:  # the sign makes the highest digit signed
                digits = digits ^ (1 << (_DIGIT_BITS - 1))
            counts += torch.bincount(digits, minlength=1 << _DIGIT_BITS).cpu()
        from_above = counts.flip(0).cumsum(0)
        digit = (1 << _DIGIT_BITS) - 1 - int((from_above < left).sum())
        left -= int(from_above[-1 - digit]) - int(counts[digit])
        if shift == bits - _DIGIT_BITS:
            digit -= 1 << (_DIGIT_BITS - 1)
        threshold += digit << shift
    survivors = []
    for scores in pool:
        keys = _sort_keys(scores, bits)
        ties = min(left, int((keys == threshold).sum()))
        survivors.append(int((keys > threshold).sum()) + ties)
        left -= ties
    return survivors


def _kth_highest(flat: Tensor, k: int) -> Tensor:
    """Return the ``k``-th highest value (from 1), by whatever is fastest on the device."""
    rank = flat.numel() - k
    if flat.device.type == "cpu":
        return torch.from_numpy(np.partition(flat.numpy(), rank))[rank]
    return flat.kthvalue(rank + 1).values


def _comparable(scores: Tensor) -> Tensor:
    """Return the scores in a dtype that numpy and torch can compare, without loss."""
    return scores.detach() if scores.dtype == torch.float64 else scores.detach().float()


def _sort_keys(scores: Tensor, bits: int) -> Tensor:
    """Return the scores as flat integers of ``bits`` bits in the same order, -0.0 as +0.0."""
    if bits == 64:
        keys = (scores.detach().double().flatten() + 0.0).view(torch.int64)
    else:
        keys = (scores.detach().float().flatten() + 0.0).view(torch.int32)
    return keys ^ (keys >> (bits - 1) & torch.iinfo(keys.dtype).max)
