"""Where: how the tensors of a pool divide the number of atoms to keep."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from lightning_prune.arguments.checks import check_fields
from lightning_prune.recipe.atoms import Atoms
from lightning_prune.recipe.old_names import refuse_old_names
from lightning_prune.recipe.proportions import divide_in_proportion
from lightning_prune.tensors import ranking
from lightning_prune.tensors.lamp import LampPart
from lightning_prune.tensors.parts import Part
from lightning_prune.tensors.ranking import Share
from lightning_prune.tensors.samples import find_last

Fits = Callable[[Mapping[str, int]], bool]
"""Whether numbers to keep, by the name of the tensor, fit; never true again as they grow."""


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
        per: Unit of `Atoms.saving`, the cost by which the allocation divides scores; then it needs
            scores that are not negative. None if it reads no savings.
        isomorphic: Whether groups share a number to keep only with groups of the same kind.
    """

    shares_budget: ClassVar[bool] = True
    needs_scores: ClassVar[bool] = False
    needs_unsigned_scores: ClassVar[bool] = False
    needs_single_tensors: ClassVar[bool] = False
    works_on_shards: ClassVar[bool] = False
    per: Literal["macs", "parameters", "latency"] | None = None
    isomorphic: bool = False

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

    def share_out_most(self, atoms: Mapping[str, Atoms], fits: Fits) -> dict[str, Share]:
        """Return the shares of the largest number to keep that fits.

        The engine calls this method for a budget. By default it divides about 25 numbers in turn.
        An allocation that finds the number in the scores overrides it.

        Args:
            atoms: The atoms of each tensor of the pool, by name, in the order of the model.
            fits: Whether numbers to keep, by name, fit. As they grow, they never fit again.

        Returns:
            The shares; those of the least number, the sum of the floors, if none fits.
        """
        floor = sum(tensor.floor for tensor in atoms.values())
        cap = sum(tensor.cap for tensor in atoms.values())

        def fits_at(due: int) -> bool:
            return fits({name: share.keep for name, share in self.share_out(atoms, due).items()})

        return self.share_out(atoms, find_last(range(floor + 1, cap + 1), fits_at))

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
        return divide_in_proportion(
            atoms, {name: float(tensor.total) for name, tensor in atoms.items()}, due
        )


@dataclass(frozen=True, kw_only=True)
class GlobalAllocation(Allocation):
    r"""Keep the best atoms of all tensors together.

    With `MagnitudeCriterion` this is the global magnitude pruning of Han et al., "Learning both
    Weights and Connections" (2015), https://arxiv.org/abs/1506.02626. The name comes from Blalock
    et al. (2020), https://arxiv.org/abs/2003.03033.

    With ``per``, an atom that saves more is pruned sooner. Atoms are ranked by

    .. math:: \mathrm{score}(u) = \frac{s_u}{c_u}

    Here :math:`s` is the score, a mean over the weights in the atom, and :math:`c` is the cost that
    the atom saves for each of them. So the quotient is the sum of the scores over the cost. If the
    sum is the loss that pruning the atom adds, this rule is the greedy solution of the knapsack
    problem of Shen et al., "Structural Pruning via Latency-Saliency Knapsack" (2022),
    https://arxiv.org/abs/2210.06659. `FisherCriterion` is such a loss; by `TaylorCriterion`, atoms
    of many weights score too high, since :math:`|w g|` cannot cancel. An atom that saves nothing
    goes last. Scores must not be negative: divided by a large cost, a bad score would rise
    towards 0.

    Args:
        per: The cost that divides scores: ``"macs"``, ``"parameters"`` or ``"latency"`` that an
            atom saves. None ranks by scores alone.
        isomorphic: Whether to rank groups only against groups of the same kind, such as heads
            against heads: Fang et al., "Isomorphic Pruning for Vision Models" (2024),
            https://arxiv.org/abs/2407.04616. Each kind then has the same sparsity.

    Examples:
        >>> import torch
        >>> from lightning_prune.recipe.atoms import TensorAtoms
        >>> def atoms(*scores):
        ...     scores = torch.tensor(scores)
        ...     best = scores == scores.max()
        ...     allowed = torch.ones_like(best)
        ...     return TensorAtoms(shape=(1, 3), scores=scores, protected=best, allowed=allowed)
        >>> pool = {"a": atoms(9.0, 8.0, 7.0), "b": atoms(0.3, 0.2, 0.1)}
        >>> GlobalAllocation()(pool, due=4)
        {'a': 3, 'b': 1}
        >>> pool["a"].saving = 100.0
        >>> GlobalAllocation(per="macs")(pool, due=4)
        {'a': 1, 'b': 3}
    """

    needs_scores: ClassVar[bool] = True
    works_on_shards: ClassVar[bool] = True
    per: Literal["macs", "parameters", "latency"] | None = None
    isomorphic: bool = False

    def __call__(self, atoms: Mapping[str, Atoms], due: int) -> dict[str, int]:
        """Return how many of the ``due`` best atoms of the pool each tensor has."""
        return {name: share.keep for name, share in self.share_out(atoms, due).items()}

    def share_out(self, atoms: Mapping[str, Atoms], due: int) -> dict[str, Share]:
        """Return the same numbers, with the threshold that divides each tensor."""
        if self.per is not None:
            return self.share_out_most(atoms, lambda keep: sum(keep.values()) <= due)
        shares = ranking.share_out([tensor.part for tensor in atoms.values()], due)
        return dict(zip(atoms, shares, strict=True))

    def share_out_most(self, atoms: Mapping[str, Atoms], fits: Fits) -> dict[str, Share]:
        """Return the shares of the largest number to keep that fits, by a single search."""
        if self.per is None:
            return _search(atoms, [tensor.part for tensor in atoms.values()], fits)
        paid = {name: tensor for name, tensor in atoms.items() if tensor.saving > 0}
        free = {name: tensor for name, tensor in atoms.items() if name not in paid}
        floors = {name: tensor.floor for name, tensor in paid.items()}
        caps = {name: tensor.cap for name, tensor in free.items()}
        if fits({**floors, **caps}):
            parts = _divide_by_savings(paid)
            found = _search(paid, parts, lambda keep: fits({**caps, **keep}))
        else:  # a sparsity can ask for more than all atoms that save a cost
            parts = [tensor.part for tensor in free.values()]
            found = _search(free, parts, lambda keep: fits({**floors, **keep}))
        keeps = {**floors, **caps, **{name: share.keep for name, share in found.items()}}
        return {name: Share(keep=keeps[name]) for name in atoms}


@dataclass(frozen=True, kw_only=True)
class LAMPAllocation(Allocation):
    r"""Rescale the scores inside each tensor, then keep the best atoms of all tensors together.

    .. math:: \mathrm{score}(u) = \frac{s_u^2}{\sum_{v:\, s_v^2 \ge s_u^2} s_v^2}

    Here :math:`s` is the score of the criterion. With `MagnitudeCriterion` this is eq. 2 of Lee et
    al., "Layer-adaptive Sparsity for the Magnitude-based Pruning" (2021),
    https://arxiv.org/abs/2010.07611. The best atom of a tensor scores 1 unless another atom ties
    with it. So no tensor loses all atoms.

    Examples:
        >>> import torch
        >>> from lightning_prune.recipe.atoms import TensorAtoms
        >>> def atoms(*scores):
        ...     scores = torch.tensor(scores)
        ...     best = scores == scores.max()
        ...     allowed = torch.ones_like(best)
        ...     return TensorAtoms(shape=(1, 3), scores=scores, protected=best, allowed=allowed)
        >>> pool = {"a": atoms(9.0, 8.0, 7.0), "b": atoms(0.3, 0.1, 0.1)}
        >>> LAMPAllocation()(pool, due=4)
        {'a': 3, 'b': 1}
    """

    needs_scores: ClassVar[bool] = True
    needs_unsigned_scores: ClassVar[bool] = True
    works_on_shards: ClassVar[bool] = True

    def __call__(self, atoms: Mapping[str, Atoms], due: int) -> dict[str, int]:
        """Return how many of the ``due`` best atoms of the rescaled pool each tensor has."""
        shares = self.share_out_most(atoms, lambda keep: sum(keep.values()) <= due)
        return {name: share.keep for name, share in shares.items()}

    def share_out_most(self, atoms: Mapping[str, Atoms], fits: Fits) -> dict[str, Share]:
        """Return the shares of the largest number to keep that fits, by a single search."""
        floor = sum(tensor.floor for tensor in atoms.values())
        caps = [tensor.cap for tensor in atoms.values()]

        def fits_between(counts: Sequence[int]) -> bool:
            return sum(counts) <= floor or fits(dict(zip(atoms, counts, strict=True)))

        if fits_between(caps):
            return {name: Share(keep=tensor.cap) for name, tensor in atoms.items()}
        pool = [_read_lamp_part(tensor) for tensor in atoms.values()]
        return dict(zip(atoms, ranking.share_out_lamp(pool, fits_between), strict=True))


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
        return divide_in_proportion(atoms, proportions, due)


def _read_lamp_part(atoms: Atoms) -> LampPart:
    protected = atoms.protected_part
    held = 0 if protected is None else atoms.floor
    return LampPart(part=atoms.part, held=held, allowed=atoms.cap, protected=protected)


def _divide_by_savings(atoms: Mapping[str, Atoms]) -> list[Part]:
    """Return the scores to rank, divided by the savings, in units of the smallest saving."""
    least = min((tensor.saving for tensor in atoms.values()), default=1.0)
    return [tensor.part.scale(least / tensor.saving) for tensor in atoms.values()]


def _search(atoms: Mapping[str, Atoms], parts: Sequence[Part], fits: Fits) -> dict[str, Share]:
    """Return the shares of the largest number to keep that fits, or those of the floors.

    Args:
        atoms: The atoms of each tensor, by name; they give floors and caps.
        parts: The values to rank, in the same order.
        fits: Whether numbers to keep, by name, fit.
    """
    floor = sum(tensor.floor for tensor in atoms.values())
    cap = sum(tensor.cap for tensor in atoms.values())

    def fits_between(counts: Sequence[int]) -> bool:
        total = sum(counts)
        return total <= floor or (total <= cap and fits(dict(zip(atoms, counts, strict=True))))

    return dict(zip(atoms, ranking.share_out_most(parts, fits_between), strict=True))
