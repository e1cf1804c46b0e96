"""What the zeros of a tensor form, read off the tensor alone."""

import math

from torch import Tensor

_GROUP_SIZES = (2, 4, 8, 16)
_BY_CHANCE = 1e-3  # below this probability it is no accident


def pattern_of(weight: Tensor) -> str:
    """Return what the zeros of a weight form, the most useful that holds.

    Args:
        weight: As ``(output, input, ...)``.

    Returns:
        ``"dense"``, ``"empty"``, ``"channels"`` (whole outputs or inputs, counted), ``"blocks"``
        (of outputs and flattened inputs: the largest that fit), ``"n:m"`` (at most n of m
        consecutive inputs, unless the zeros are so many that they would do so by chance), or
        ``"unstructured"``.

    Examples:
        >>> import torch
        >>> pattern_of(torch.tensor([[1.0, 2.0], [0.0, 0.0]]))
        'channels: 1 of 2 outputs'
        >>> pattern_of(torch.eye(4).repeat_interleave(2, 0).repeat_interleave(2, 1))
        'blocks of 2 x 2'
        >>> pairs = torch.rand(8, 8, 2)
        >>> pattern_of((pairs * (pairs == pairs.amax(2, keepdim=True))).flatten(1))
        '1:2'
        >>> pattern_of(torch.tensor([[1.0, 0.0, 2.0], [3.0, 4.0, 5.0], [0.0, 6.0, 7.0]]))
        'unstructured'
    """
    kept = weight != 0
    if kept.all():
        return "dense"
    if not kept.any():
        return "empty"
    return _channels(kept) or _blocks(kept.flatten(1)) or _groups(kept) or "unstructured"


def _channels(kept: Tensor) -> str | None:
    """Return how many outputs and inputs are left, if the others are zero and these are not."""
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


def _blocks(kept: Tensor) -> str | None:
    """Return the largest blocks that share a fate.

    They do if and only if a row differs from the one before at multiples of the height only, and a
    column from the one before at multiples of the width only.
    """
    height, width = _distance(kept), _distance(kept.T)
    return f"blocks of {height} x {width}" if height * width > 1 else None


def _distance(rows: Tensor) -> int:
    changes = (rows[1:] != rows[:-1]).any(1).nonzero().flatten() + 1
    return math.gcd(len(rows), *changes.tolist())


def _groups(kept: Tensor) -> str | None:
    """Return of which groups of consecutive inputs how many are kept: in all, or at most."""
    density = float(kept.double().mean())
    at_most = None
    for m in _GROUP_SIZES:
        if kept.shape[1] % m:
            continue
        groups = kept.movedim(1, -1).reshape(-1, m).sum(1)
        n = int(groups.max())
        if n == m or _at_most(n, m, density) ** len(groups) > _BY_CHANCE:
            continue
        if (groups == n).all():
            return f"{n}:{m}"
        at_most = at_most or f"{n}:{m}"
    return at_most


def _at_most(n: int, m: int, density: float) -> float:
    """Return the probability that at most n of m are kept if each is, independently."""
    return sum(math.comb(m, k) * density**k * (1 - density) ** (m - k) for k in range(n + 1))
