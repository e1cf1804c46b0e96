"""The pattern of the zeros of a tensor, found in the tensor alone."""

import math

from torch import Tensor

_GROUP_SIZES = (2, 4, 8, 16)
_BY_CHANCE = 1e-3  # a less probable pattern is no accident


def describe_pattern(weight: Tensor) -> str:
    """Return the most useful pattern that the zeros of a weight have.

    Args:
        weight: A tensor of shape ``(output, input, ...)``.

    Returns:
        ``"dense"``; ``"empty"``; ``"channels"`` with the number of kept outputs or inputs;
        ``"blocks"`` with the largest size that fits, in outputs and flattened inputs; ``"n:m"`` if
        at most n of m consecutive inputs are kept, unless so many zeros would do so by chance; or
        ``"unstructured"``.

    Examples:
        >>> import torch
        >>> describe_pattern(torch.tensor([[1.0, 2.0], [0.0, 0.0]]))
        'channels: 1 of 2 outputs'
        >>> describe_pattern(torch.eye(4).repeat_interleave(2, 0).repeat_interleave(2, 1))
        'blocks of 2 x 2'
        >>> pairs = torch.rand(8, 8, 2)
        >>> describe_pattern((pairs * (pairs == pairs.amax(2, keepdim=True))).flatten(1))
        '1:2'
        >>> describe_pattern(torch.tensor([[1.0, 0.0, 2.0], [3.0, 4.0, 5.0], [0.0, 6.0, 7.0]]))
        'unstructured'
    """
    kept = weight != 0
    if kept.all():
        return "dense"
    if not kept.any():
        return "empty"
    return (
        _describe_channels(kept)
        or _describe_blocks(kept.flatten(1))
        or _describe_groups(kept)
        or "unstructured"
    )


def _describe_channels(kept: Tensor) -> str | None:
    """Return how many outputs and inputs are kept, if no kept channel has a zero."""
    outputs = kept.flatten(1).any(1)
    inputs = kept.movedim(1, 0).flatten(1).any(1)
    if not kept[outputs][:, inputs].all():
        return None
    left = [
        f"{int(alive.sum())} of {len(alive)} {side}"
        for alive, side in ((outputs, "outputs"), (inputs, "inputs"))
        if not alive.all()
    ]
    return f"channels: {', '.join(left)}"


def _describe_blocks(kept: Tensor) -> str | None:
    """Return the largest size of blocks that are either kept or zero as a whole.

    Two neighboring rows differ only at multiples of the height, and two neighboring columns only
    at multiples of the width.
    """
    height, width = _period(kept), _period(kept.T)
    return f"blocks of {height} x {width}" if height * width > 1 else None


def _period(rows: Tensor) -> int:
    """Return the largest divisor of the length and of every index where the rows change."""
    changes = (rows[1:] != rows[:-1]).any(1).nonzero().flatten() + 1
    return math.gcd(len(rows), *changes.tolist())


def _describe_groups(kept: Tensor) -> str | None:
    """Return n:m for the smallest m with n inputs kept in every group, or else at most n."""
    sparsity = 1 - float(kept.double().mean())
    at_most = None
    for m in _GROUP_SIZES:
        if kept.shape[1] % m:
            continue
        groups = kept.movedim(1, -1).reshape(-1, m).sum(1)
        n = int(groups.max())
        if n == m or _probability(n, m, sparsity) ** len(groups) > _BY_CHANCE:
            continue
        if (groups == n).all():
            return f"{n}:{m}"
        at_most = at_most or f"{n}:{m}"
    return at_most


def _probability(n: int, m: int, sparsity: float) -> float:
    """Return the probability that at most n of m entries are kept, if all are independent."""
    return sum(math.comb(m, k) * (1 - sparsity) ** k * sparsity ** (m - k) for k in range(n + 1))
