"""What shape: which weights are kept or pruned together, and which masks a tensor allows."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lightning_prune.arguments.checks import check_fields
from lightning_prune.recipe.allocations import Allocation, ERKAllocation, UniformAllocation
from lightning_prune.recipe.old_names import refuse_old_names
from lightning_prune.tensors.parts import count_pieces
from lightning_prune.tensors.ranking import choose_best, choose_best_evenly, rank_rows
from lightning_prune.tensors.shards import Shard


class Pattern(ABC):
    """The answer to *what shape?*.

    An atom is the smallest unit that is kept or pruned: a weight, a block or a channel. Tensors
    have the shape ``(output, input, ...)``. A subclass is a frozen dataclass with a default for
    every field. The methods below describe single weights that may be pruned anywhere. Override
    the methods that differ.

    Attributes:
        couples_tensors: Whether an atom spans several tensors: a channel or a residual branch of a
            traced model.
        spans_branches: Whether such an atom is a residual branch.
        fixes_sparsity: Whether the pattern itself says how sparse a tensor ends.
    """

    couples_tensors: ClassVar[bool] = False
    spans_branches: ClassVar[bool] = False
    fixes_sparsity: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise TypeError if a field has the wrong type; a subclass calls this method first."""
        check_fields(self)

    @property
    def ranks_freely(self) -> bool:
        """Whether atoms are single weights, and the best weights are kept without bounds.

        Then the engine ranks the weights in pieces and does not call the pattern. Each process
        ranks the local part of a shard.
        """
        return False

    @property
    def prunes_single_weights(self) -> bool:
        """Whether an atom is a single weight: whether the pattern leaves `to_atoms` as it is."""
        return type(self).to_atoms is Pattern.to_atoms

    @property
    def works_on_shards(self) -> bool:
        """Whether a mask made from shards equals the mask of the whole tensor.

        Then `bounds`, `to_atoms` and `to_entries` of a local part give the local part of the whole
        result, where `find_atoms` does not refuse the shard. And `__call__` keeps the best values
        of `to_ranking`; of equal values the lower index comes first. Atoms that span several
        tensors are whole on each process.
        """
        return self.ranks_freely or self.couples_tensors

    def find_atoms(self, shard: Shard) -> Shard:
        """Return the place of the local atoms among all atoms of a sharded tensor.

        Args:
            shard: Place of the local weights, output axis first.

        Raises:
            ValueError: If a process would hold a part of an atom, or a part of the weights that
                the pattern compares with each other.
        """
        return shard

    def to_ranking(self, scores: Tensor) -> Tensor:
        """Return the values by which `__call__` ranks atoms; each may depend on the row only."""
        return scores

    @property
    def prunes_residual_streams(self) -> bool:
        """Whether coupled channels that pass through residual additions are pruned too."""
        return False

    def default_allocation(self) -> Allocation:
        """Return the allocation that suits the pattern if the user gives None."""
        return UniformAllocation() if self.couples_tensors else ERKAllocation()

    def check_sparsity(self, sparsity: float) -> None:  # noqa: B027
        """Raise ValueError if the pattern cannot hold this final sparsity."""

    def check_shape(self, shape: tuple[int, ...]) -> None:  # noqa: B027
        """Raise ValueError if the pattern does not fit a tensor of this shape."""

    def keeps_slices(self, axis: int) -> bool:
        """Whether a tensor can keep a weight at each index of an axis, as `weight_norm` needs.

        The pattern then promises two things. `bounds` allows an atom at each index where atoms are
        alive. And where each index of this axis of the atoms keeps one, each index of the tensor's
        axis keeps a weight.
        """
        return False

    def to_atoms(self, entries: Tensor) -> Tensor:
        """Return a score for each atom: the mean of the scores of the weights in the atom."""
        return entries

    def to_entries(self, atoms: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return the bool mask of the weights, in this shape, from the bool mask of the atoms."""
        return atoms

    def bounds(self, scores: Tensor, alive: Tensor, due: float) -> tuple[Tensor, Tensor]:
        """Return which atoms must be kept and which atoms may be kept.

        Args:
            scores: A score for each atom.
            alive: Bool mask of the atoms that are not pruned, shaped as ``scores``.
            due: Number of atoms that this tensor would keep at the sparsity of the pool: a whole
                number; for the local part of a shard, the share of the local part.

        Returns:
            Two bool masks shaped as ``scores``: the protected and the allowed atoms.
        """
        return torch.zeros_like(alive), alive

    def count_fitting(self, alive: Tensor) -> Tensor:
        """Return how many atoms that are not pruned can stay together, as a tensor.

        Args:
            alive: Bool mask of the atoms that are not pruned.
        """
        return count_pieces(alive)

    def count_bounds(
        self, total: int, alive: int, fitting: int, due: float
    ) -> tuple[int, int] | None:
        """Return how many atoms `bounds` protects and allows; None if only the masks say so.

        So the engine knows bounds before it makes masks, and waits less for an accelerator.
        `is_satisfied` must be true where all atoms that are not pruned are allowed, and only there.

        Args:
            total: Number of atoms of the whole tensor.
            alive: Number of atoms that are not pruned.
            fitting: The number that `count_fitting` returns.
            due: As in `bounds`.
        """
        kind = type(self)
        is_plain = kind.bounds is Pattern.bounds and kind.is_satisfied is Pattern.is_satisfied
        return (0, alive) if is_plain else None

    def is_satisfied(self, alive: Tensor, due: float) -> bool:
        """Whether the pattern asks for no further pruning where ``due`` atoms may be kept."""
        return True

    def round_kept(self, due: int, total: int, width: int) -> int:
        """Return the number of atoms to keep if an allocation gives ``due``; never falls with it.

        Args:
            due: Number of atoms, in [0, total].
            total: Number of all atoms, including pruned atoms.
            width: Number of indices of each atom along the output axis of the computing layer.
        """
        return due

    def __init_subclass__(cls) -> None:
        """Refuse the names of 0.1.0, which the engine would silently ignore."""
        super().__init_subclass__()
        refuse_old_names(cls, {"holds": "is_satisfied"})

    @abstractmethod
    def __call__(self, scores: Tensor, keep: int) -> Tensor:
        """Return a bool mask of the atoms that keeps exactly ``keep``.

        Args:
            scores: A score for each atom; atoms at +inf must be kept, atoms at -inf must not.
            keep: Number to keep: at least the scores at +inf, at most the scores above -inf.
        """


@dataclass(frozen=True, kw_only=True)
class UnstructuredPattern(Pattern):
    """Single weights anywhere in the tensor.

    Args:
        per_row: Keep the same number in each output row; if the rows do not divide the number,
            the earlier rows keep 1 more. Sun et al., "A Simple and Effective Pruning Approach for
            LLMs" (2023), https://arxiv.org/abs/2306.11695, recommend this for language models.

    Examples:
        >>> UnstructuredPattern()(torch.tensor([[4.0, 3.0], [1.0, 2.0]]), keep=2).tolist()
        [[True, True], [False, False]]
        >>> UnstructuredPattern(per_row=True)(torch.tensor([[4.0, 3.0], [1.0, 2.0]]), 2).tolist()
        [[True, False], [False, True]]
    """

    per_row: bool = False

    @property
    def ranks_freely(self) -> bool:
        """Whether weights of all rows compete."""
        return not self.per_row

    @property
    def works_on_shards(self) -> bool:
        """Whether a mask made from shards equals the mask of the whole tensor: it always does."""
        return True

    def find_atoms(self, shard: Shard) -> Shard:
        """Return the place of the weights; raise ValueError if ``per_row`` and rows are cut."""
        if self.per_row and any(shard.is_cut(axis) for axis in range(1, len(shard.shape))):
            raise ValueError(f"need rows that shards leave whole for {self}, got rows in parts")
        return shard

    def to_ranking(self, scores: Tensor) -> Tensor:
        """Return the scores, or with ``per_row`` minus the number of better weights of the row."""
        return rank_rows(scores) if self.per_row and scores.ndim > 1 else scores

    def keeps_slices(self, axis: int) -> bool:
        """Whether each index of an axis can keep a weight: along any axis."""
        return True

    def __call__(self, scores: Tensor, keep: int) -> Tensor:
        """Return a bool mask shaped as ``scores`` that keeps exactly ``keep`` weights."""
        is_even = self.per_row and scores.ndim > 1
        return choose_best_evenly(scores, keep) if is_even else choose_best(scores, keep)


@dataclass(frozen=True, kw_only=True)
class ChannelPattern(Pattern):
    r"""Whole channels: outputs of a layer, with all weights of other tensors that go with them.

    The other weights are the bias, the weights and biases of normalizations, depthwise
    convolutions, and the inputs of the layers that read the channel. Pruning sets all of them to
    zero. So the activation of a pruned channel is exactly zero, or a constant that no layer reads
    (after a function such as the sigmoid). Removing the channel changes no output: Li et al.,
    "Pruning Filters for Efficient ConvNets" (2017), https://arxiv.org/abs/1608.08710. A trace of
    the model shows which weights go together; it needs an example of the input. The score of a
    channel is the mean over all weights of the channel.

    Kernels are fast at multiples of 8 channels, and slow at other numbers. So of :math:`n` channels
    a layer keeps the number nearest to the number due among

    .. math:: \{m, 2m, 3m, \dots\} \cup \{n\}, \quad m = r / \gcd(r, w)

    where :math:`r` is ``round_to`` and :math:`w` the width of a channel: 1, or the size of an
    attention head. So at least :math:`m` channels stay, also at sparsity 1. Of two numbers equally
    near, the even multiple of :math:`m` is kept.

    Args:
        round_to: A layer keeps all outputs or a multiple of this number; at least 1.
        scope: ``"inner"`` prunes channels between two layers of a block; ``"all"`` also prunes
            channels of residual streams, which pass through all blocks that add to the stream.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> pattern = ChannelPattern(round_to=8)
        >>> [pattern.round_kept(due, total=20, width=1) for due in (0, 11, 12, 13, 18, 19, 20)]
        [8, 8, 16, 16, 16, 20, 20]
        >>> pattern.round_kept(3, total=12, width=64)
        3
    """

    couples_tensors: ClassVar[bool] = True
    round_to: int = 8
    scope: Literal["inner", "all"] = "inner"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.round_to < 1:
            raise ValueError(f"need round_to >= 1, got round_to={self.round_to}")

    @property
    def prunes_residual_streams(self) -> bool:
        """Whether the scope is ``"all"``, so that channels of residual streams are pruned."""
        return self.scope == "all"

    def round_kept(self, due: int, total: int, width: int) -> int:
        """Return the allowed number of channels that is nearest to ``due``."""
        unit = self.round_to // math.gcd(self.round_to, width)
        allowed: list[int] = [*range(unit, total, unit), total]
        # Only neighbors tie, and exactly one of two neighbors is an even multiple.
        return min(enumerate(allowed, 1), key=lambda each: (abs(each[1] - due), each[0] % 2))[1]

    def __call__(self, scores: Tensor, keep: int) -> Tensor:
        """Return a bool mask of the channels that keeps exactly ``keep``."""
        return choose_best(scores, keep)
