"""Where: how the tensors of a pool divide the number of atoms to keep."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_prune.arguments.checks import check_fields
from lightning_prune.recipe.atoms import Atoms
from lightning_prune.recipe.old_names import refuse_old_names
from lightning_prune.tensors import ranking
from lightning_prune.tensors.ranking import Share


class Allocation(ABC):
    """The answer to *where?*: how many atoms each tensor of a pool keeps.

    A subclass is a frozen dataclass with a default for every field.

    Attributes:
        shares_budget: Whether the tensors of a pool share a single number to keep. If not, each
            tensor is a pool.
        needs_scores: Whether the numbers to keep depend on the scores. If not, the engine knows
            the numbers in advance.
        needs_unsigned_scores: Whether the allocation needs scores that are not negative.
        needs_single_tensors: Whether the allocation refuses atoms that span several tensors.
        works_on_shards: Whether sharded tensors get the same numbers as whole tensors.
    """

    shares_budget: ClassVar[bool] = True
    needs_scores: ClassVar[bool] = False
    needs_unsigned_scores: ClassVar[bool] = False
    needs_single_tensors: ClassVar[bool] = False
    works_on_shards: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise TypeError if a field has the wrong type; a subclass calls this method first."""
        check_fields(self)

    @abstractmethod
    def __call__(self, atoms: Mapping[str, Atoms], due: int) -> dict[str, int]:
        """Return how many atoms each tensor keeps.

        Args:
            atoms: The atoms of each tensor of the pool, by name, in the order of the model.
            due: Number of atoms that the pool keeps, between the sums of floors and of caps.

        Returns:
            The number to keep by name, each between floor and cap; the numbers add up to ``due``.
        """

    def share_out(self, atoms: Mapping[str, Atoms], due: int) -> dict[str, Share]:
        """Return the same numbers, with the threshold of each tensor if ranking has found it.

        The engine calls this method. Only an allocation that finds thresholds overrides it.
        """
        return {name: Share(keep=keep) for name, keep in self(atoms, due).items()}

    def share_out_most(
        self, atoms: Mapping[str, Atoms], fits: Callable[[Mapping[str, int]], bool]
    ) -> dict[str, Share]:
        """Return the shares of the largest number to keep that fits; at least the floors.

        Args:
            atoms: The atoms of each tensor of the pool, by name, in the order of the model.
            fits: Whether numbers to keep, by name, are within a budget.
        """
        fewer = sum(tensor.floor for tensor in atoms.values())
        more = sum(tensor.cap for tensor in atoms.values()) + 1
        while more - fewer > 1:
            middle = (more + fewer) // 2
            shares = self.share_out(atoms, middle)
            if fits({name: share.keep for name, share in shares.items()}):
                fewer = middle
            else:
                more = middle
        return self.share_out(atoms, fewer)

    def __init_subclass__(cls) -> None:
        """Refuse the names of 0.1.0, which the engine would silently ignore."""
        super().__init_subclass__()
        refuse_old_names(cls, {"pooled": "shares_budget"})


@dataclass(frozen=True, kw_only=True)
class UniformAllocation(Allocation):
    """The same sparsity in every tensor: each tensor is a pool.

    This is the layerwise rule of Zhu & Gupta, "To prune, or not to prune" (2017),
    https://arxiv.org/abs/1710.01878.
    """

    shares_budget: ClassVar[bool] = False
    works_on_shards: ClassVar[bool] = True

    def __call__(self, atoms: Mapping[str, Atoms], due: int) -> dict[str, int]:
        """Divide ``due`` among the tensors in proportion to the numbers of atoms."""
        return _divide_in_proportion(
            atoms, {name: float(tensor.total) for name, tensor in atoms.items()}, due
        )


@dataclass(frozen=True, kw_only=True)
class GlobalAllocation(Allocation):
    """Keep the best atoms of all tensors together.

    With `MagnitudeCriterion` this is the global magnitude pruning of Han et al., "Learning both
    Weights and Connections" (2015), https://arxiv.org/abs/1506.02626. The name comes from Blalock
    et al. (2020), https://arxiv.org/abs/2003.03033.

    Examples:
        >>> from lightning_prune.recipe.atoms import TensorAtoms
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
        """Return how many of the ``due`` best atoms of the pool each tensor has."""
        return {name: share.keep for name, share in self.share_out(atoms, due).items()}

    def share_out(self, atoms: Mapping[str, Atoms], due: int) -> dict[str, Share]:
        """Return the same numbers, with the threshold that divides each tensor."""
        shares = ranking.share_out([tensor.part for tensor in atoms.values()], due)
        return dict(zip(atoms, shares, strict=True))


@dataclass(frozen=True, kw_only=True)
class LAMPAllocation(Allocation):
    r"""Rescale the scores inside each tensor, then keep the best atoms of all tensors together.

    .. math:: \mathrm{score}(u) = \frac{s_u^2}{\sum_{v:\, s_v^2 \ge s_u^2} s_v^2}

    Here :math:`s` is the score of the criterion. With `MagnitudeCriterion` this is eq. 2 of Lee et
    al., "Layer-adaptive Sparsity for the Magnitude-based Pruning" (2021),
    https://arxiv.org/abs/2010.07611. The best atom of a tensor scores 1 unless another atom ties
    with it. So no tensor loses all atoms.

    Examples:
        >>> rescale_lamp(torch.tensor([3.0, 1.0, 2.0])).round(decimals=3).tolist()
        [1.0, 0.071, 0.308]
    """

    needs_scores: ClassVar[bool] = True
    needs_unsigned_scores: ClassVar[bool] = True

    def __call__(self, atoms: Mapping[str, Atoms], due: int) -> dict[str, int]:
        """Return how many of the ``due`` best atoms of the rescaled pool each tensor has."""
        rescaled = {
            name: tensor.rescore(rescale_lamp(tensor.scores.masked_fill(~tensor.allowed, 0)))
            for name, tensor in atoms.items()
        }
        return GlobalAllocation()(rescaled, due)


@dataclass(frozen=True, kw_only=True)
class ERKAllocation(Allocation):
    r"""Erdős-Rényi-Kernel: a larger tensor becomes sparser.

    A tensor with the shape :math:`(n_1, n_2, \dots)` keeps a fraction in proportion to

    .. math:: \left(\frac{\sum_i n_i}{\prod_i n_i}\right)^{\mathrm{scale}}

    Tensors whose fraction would exceed 1 stay dense, and the other tensors share the rest: Evci et
    al., "Rigging the Lottery" (2020), https://arxiv.org/abs/1911.11134. The total is exact: the
    number of each tensor is rounded down, then the tensors with the largest remainders get 1 more.
    Of equal remainders the earlier tensor comes first.

    Args:
        scale: Exponent, at least 0; 0 gives every tensor the same fraction.

    Raises:
        ValueError: If ``scale`` is negative or not finite.
    """

    needs_single_tensors: ClassVar[bool] = True
    works_on_shards: ClassVar[bool] = True
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.scale >= 0 and math.isfinite(self.scale)):
            raise ValueError(f"need a finite scale >= 0, got scale={self.scale}")

    def __call__(self, atoms: Mapping[str, Atoms], due: int) -> dict[str, int]:
        """Return the number of each tensor by the rule above, between floor and cap."""
        proportions = {
            name: tensor.total * (sum(tensor.shape) / math.prod(tensor.shape)) ** self.scale
            for name, tensor in atoms.items()
        }
        return _divide_in_proportion(atoms, proportions, due)


def rescale_lamp(scores: Tensor) -> Tensor:
    """Divide the square of each score by the sum of all squares at least as large.

    Args:
        scores: Scores of any shape, at least 0.

    Returns:
        Rescaled scores of the same shape, in double precision, in [0, 1].
    """
    squares = scores.double().flatten().square()
    values, order = squares.sort(descending=True, stable=True)
    sums = values.cumsum(0)
    # Equal squares share the sum up to the last equal square.
    last_of_run = torch.searchsorted(-values, -values, right=True) - 1
    rescaled = torch.where(values > 0, values / sums[last_of_run], 0.0)
    return torch.empty_like(rescaled).scatter_(0, order, rescaled).view(scores.shape)


def _divide_in_proportion(
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
