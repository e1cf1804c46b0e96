"""Where: how the number of atoms to keep is divided among the tensors of a pool."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_prune.recipe.atoms import Atoms, TensorAtoms
from lightning_prune.tensors import ranking


class Allocation(ABC):
    """The answer to *where?*: which tensor of a pool keeps how many atoms.

    A subclass is a frozen dataclass with a default for every field.

    Attributes:
        pooled: Whether the tensors of a pool share one budget. If not, each is its own pool.
        needs_scores: Whether the numbers depend on the scores; if not, they are known in advance.
        needs_unsigned_scores: Whether scores below 0 have no meaning to it.
        needs_single_tensors: Whether it cannot divide atoms that span several tensors.
        works_on_shards: Whether its numbers for sharded tensors are those for the whole ones.
    """

    pooled: ClassVar[bool] = True
    needs_scores: ClassVar[bool] = False
    needs_unsigned_scores: ClassVar[bool] = False
    needs_single_tensors: ClassVar[bool] = False
    works_on_shards: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, atoms: Mapping[str, Atoms], due: int) -> dict[str, int]:
        """Return how many atoms each tensor keeps.

        Args:
            atoms: The pool, by name, in the order of the model.
            due: How many atoms the pool keeps in all, between its floors and caps.

        Returns:
            The number to keep by name, each between floor and cap; they add up to ``due``.
        """


@dataclass(frozen=True, kw_only=True)
class UniformAllocation(Allocation):
    """The same sparsity in every tensor: each is a pool of its own.

    The layerwise rule of Zhu & Gupta, "To prune, or not to prune" (2017),
    https://arxiv.org/abs/1710.01878.
    """

    pooled: ClassVar[bool] = False
    works_on_shards: ClassVar[bool] = True

    def __call__(self, atoms: Mapping[str, Atoms], due: int) -> dict[str, int]:
        """Return what is due, in proportion to the tensors' atoms if there are several."""
        return _in_proportion(atoms, {name: float(a.total) for name, a in atoms.items()}, due)


@dataclass(frozen=True, kw_only=True)
class GlobalAllocation(Allocation):
    """The best of all tensors together, wherever they are.

    Global magnitude pruning of Han et al., "Learning both Weights and Connections" (2015),
    https://arxiv.org/abs/1506.02626, as named by Blalock et al. (2020),
    https://arxiv.org/abs/2003.03033.

    Examples:
        >>> def atoms(*scores):
        ...     scores = torch.tensor(scores)
        ...     best = scores == scores.max()
        ...     allowed = torch.ones_like(best)
        ...     return TensorAtoms(shape=(1, 3), scores=scores, protected=best, allowed=allowed)
        >>> pool = {"a": atoms(9.0, 8.0, 7.0), "b": atoms(0.3, 0.2, 0.1)}
        >>> GlobalAllocation()(pool, due=4)
        {'a': 3, 'b': 1}
    """

    needs_scores: ClassVar[bool] = True
    works_on_shards: ClassVar[bool] = True

    def __call__(self, atoms: Mapping[str, Atoms], due: int) -> dict[str, int]:
        """Return how many of the ``due`` best of the pool are in each tensor."""
        counts = ranking.best_of_pool([a.part for a in atoms.values()], due)
        return dict(zip(atoms, counts, strict=True))


@dataclass(frozen=True, kw_only=True)
class LAMPAllocation(Allocation):
    r"""Global, after each tensor's scores are made comparable with those of the others.

    .. math:: \mathrm{score}(u) = \frac{s_u^2}{\sum_{v:\, s_v^2 \ge s_u^2} s_v^2}

    with the criterion's score :math:`s`, for magnitude eq. 2 of Lee et al., "Layer-adaptive
    Sparsity for the Magnitude-based Pruning" (2021), https://arxiv.org/abs/2010.07611. The best
    atom of a tensor scores 1 unless it is tied, so no tensor is emptied.

    Examples:
        >>> lamp(torch.tensor([3.0, 1.0, 2.0])).round(decimals=3).tolist()
        [1.0, 0.071, 0.308]
    """

    needs_scores: ClassVar[bool] = True
    needs_unsigned_scores: ClassVar[bool] = True

    def __call__(self, atoms: Mapping[str, Atoms], due: int) -> dict[str, int]:
        """Return how many of the ``due`` best of the rescaled pool are in each tensor."""
        rescaled = {
            name: TensorAtoms(
                shape=a.shape,
                scores=lamp(a.scores.masked_fill(~a.allowed, 0)),
                protected=a.protected,
                allowed=a.allowed,
            )
            for name, a in atoms.items()
        }
        return GlobalAllocation()(rescaled, due)


@dataclass(frozen=True, kw_only=True)
class ERKAllocation(Allocation):
    r"""Erdős-Rényi-Kernel: the larger a tensor, the sparser.

    The fraction kept of a tensor with the shape :math:`(n_1, n_2, \dots)` is in proportion to

    .. math:: \left(\frac{\sum_i n_i}{\prod_i n_i}\right)^{\mathrm{scale}}

    tensors that would exceed 1 stay dense and the rest is rescaled; Evci et al., "Rigging the
    Lottery" (2020), https://arxiv.org/abs/1911.11134. The total is exact: each tensor's number is
    rounded down, then the largest remainders get one more, ties to the earlier tensor.

    Args:
        scale: Exponent, not negative; 0 gives every tensor the same fraction.

    Raises:
        ValueError: If ``scale`` is negative or not finite.
    """

    needs_single_tensors: ClassVar[bool] = True
    works_on_shards: ClassVar[bool] = True
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not (self.scale >= 0 and math.isfinite(self.scale)):
            raise ValueError(f"need a finite scale >= 0, got scale={self.scale}")

    def __call__(self, atoms: Mapping[str, Atoms], due: int) -> dict[str, int]:
        """Return each tensor's number by the rule above, between its floor and its cap."""
        weights = {
            name: a.total * (sum(a.shape) / math.prod(a.shape)) ** self.scale
            for name, a in atoms.items()
        }
        return _in_proportion(atoms, weights, due)


def lamp(scores: Tensor) -> Tensor:
    """Return each score's square over the sum of all squares at least as large (`LAMPAllocation`).

    Args:
        scores: Scores of any shape, not negative.

    Returns:
        Rescaled scores of the same shape, in double precision, in [0, 1].
    """
    squares = scores.double().flatten().square()
    values, order = squares.sort(descending=True, stable=True)
    sums = values.cumsum(0)
    # Equal squares share the sum up to the last of them.
    last_of_run = torch.searchsorted(-values, -values, right=True) - 1
    rescaled = torch.where(values > 0, values / sums[last_of_run], 0.0)
    return torch.empty_like(rescaled).scatter_(0, order, rescaled).view(scores.shape)


def _in_proportion(
    atoms: Mapping[str, Atoms], weights: Mapping[str, float], due: int
) -> dict[str, int]:
    """Divide ``due`` in proportion to the weights, between floors and caps, to the last atom."""
    bounds = {name: (a.floor, a.cap) for name, a in atoms.items()}

    def shares(factor: float) -> dict[str, float]:
        return {
            name: min(max(factor * weights[name], floor), cap)
            for name, (floor, cap) in bounds.items()
        }

    # The sum of the shares grows with the factor and is linear between the factors where a tensor
    # reaches its floor or its cap: find the piece that holds `due`, then solve for the factor.
    turns = sorted(
        {bound / weights[name] for name, both in bounds.items() for bound in both} | {0.0}
    )
    start = max((turn for turn in turns if sum(shares(turn).values()) <= due), default=0.0)
    fixed = shares(start)
    free = [
        name
        for name, (floor, cap) in bounds.items()
        if floor / weights[name] <= start < cap / weights[name]
    ]
    if free:
        taken = sum(fixed[name] for name in bounds if name not in free)
        factor = (due - taken) / sum(weights[name] for name in free)
        exact = {**fixed, **{name: min(factor * weights[name], bounds[name][1]) for name in free}}
    else:
        exact = fixed
    keep = {name: math.floor(share * (1 + 1e-12) + 1e-9) for name, share in exact.items()}
    by_remainder = sorted(keep, key=lambda name: keep[name] - exact[name])
    room = [name for name in by_remainder if keep[name] < bounds[name][1]]
    for name in room[: due - sum(keep.values())]:
        keep[name] += 1
    return keep
