"""Shares of tensors in given proportions, between floors and caps."""

import math
from collections.abc import Mapping

from lightning_prune.recipe.atoms import Atoms


def divide_in_proportion(
    atoms: Mapping[str, Atoms], proportions: Mapping[str, float], due: int
) -> dict[str, int]:
    """Divide ``due`` in the given proportions, between floors and caps, to the last atom."""
    bounds = {name: (tensor.floor, tensor.cap) for name, tensor in atoms.items()}
    exact = _solve_shares(bounds, proportions, due)
    keep = {name: math.floor(share * (1 + 1e-12) + 1e-9) for name, share in exact.items()}
    by_remainder = sorted(keep, key=lambda name: keep[name] - exact[name])
    room = [name for name in by_remainder if keep[name] < bounds[name][1]]
    for name in room[: due - sum(keep.values())]:
        keep[name] += 1
    return keep


def _solve_shares(
    bounds: Mapping[str, tuple[int, int]], proportions: Mapping[str, float], due: int
) -> dict[str, float]:
    """Return shares of ``due`` in the given proportions, between floors and caps.

    The sum of the shares grows with the common factor. The sum is linear between the factors where
    a tensor reaches a floor or a cap. So find the piece that holds ``due``, then solve for the
    factor.
    """

    def clamp(factor: float) -> dict[str, float]:
        return {
            name: min(max(factor * proportions[name], floor), cap)
            for name, (floor, cap) in bounds.items()
        }

    turns = {bound / proportions[name] for name, both in bounds.items() for bound in both} | {0.0}
    below = (turn for turn in sorted(turns) if sum(clamp(turn).values()) <= due)
    start = max(below, default=0.0)
    shares = clamp(start)
    free = [
        name
        for name, (floor, cap) in bounds.items()
        if floor / proportions[name] <= start < cap / proportions[name]
    ]
    if free:
        taken = sum(shares[name] for name in bounds if name not in free)
        factor = (due - taken) / sum(proportions[name] for name in free)
        shares |= {name: min(factor * proportions[name], bounds[name][1]) for name in free}
    return shares
