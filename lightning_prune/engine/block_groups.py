"""Atoms of one tensor that a pattern or rows bound: blocks, N of M, the weights of each row."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_prune.engine.bounded_groups import BoundedGroup
from lightning_prune.engine.choices import Settled
from lightning_prune.engine.extents import Extent
from lightning_prune.engine.tally import Counted
from lightning_prune.engine.tensor_groups import TensorGroup
from lightning_prune.models.experts import stack_rows, unstack_rows
from lightning_prune.recipe.patterns import Pattern
from lightning_prune.recipe.tensor import PrunedTensor
from lightning_prune.tensors.ranking import choose_best_of_slices
from lightning_prune.tensors.shards import Shard, sum_shards


@dataclass(kw_only=True, eq=False)
class BlockGroup(TensorGroup, BoundedGroup):
    """The atoms of one tensor: for a pattern with bounds, larger atoms, or rows that stay."""

    @cached_property
    def shard(self) -> Shard | None:
        """Which part of the atoms is local, in the order of the scores; None if all are."""
        return find_atoms(self.members[0], self.pattern)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Shape of the atoms of the whole tensor, as the pattern sees them."""
        return tuple(self.alive().shape) if self.shard is None else self.shard.shape

    @cached_property
    def total(self) -> int:
        """Number of atoms, pruned ones included."""
        return math.prod(self.shape)

    @property
    def atoms_kept(self) -> int:
        """Number of atoms that are not pruned; processes with shards must ask together."""
        member = self.members[0]
        if self.shard is None and self.total == member.total:
            return member.kept
        return super().atoms_kept

    def foresee(self, choice: Settled) -> Iterator[Counted]:
        """Yield how many weights the tensor keeps after a mask, and how many atoms."""
        yield from super().foresee(choice)
        assert isinstance(choice, Tensor)
        yield self.count_atoms(choice if self.may_return else self.alive_after(choice))

    def extents(self) -> Iterator[Extent]:
        """Yield the tensor: its atoms may lie anywhere, and the first atom is the largest."""
        if self.shard is not None:  # the first atom may be in another process
            width, member = round(self.weights_per_atom), self.members[0]
            yield Extent(parameter=member.name, axis=None, covered=member.total, width=width)
            return
        first = torch.zeros_like(self.alive())
        first.view(-1)[:1] = True
        for member, weights in self.spread(first):
            width = int(weights.sum())
            yield Extent(parameter=member.name, axis=None, covered=member.total, width=width)

    @cached_property
    def rows(self) -> int:
        """Number of rows that must each keep an atom; 0 if all atoms may go."""
        axes = self.members[0].row_axes
        return 0 if axes is None else math.prod(self.shape[axis] for axis in axes)

    def count_lost_rows(self) -> int:
        """Count the rows that keep no atom."""
        alive = self.alive()
        ranked = torch.zeros(alive.shape, device=alive.device).masked_fill(~alive, -math.inf)
        return self.rows - int(
            sum_shards(self.find_row_holders(ranked).count_nonzero(), self.shard)
        )

    def find_row_holders(self, ranked: Tensor) -> Tensor:
        """Return the best atom of each row that is not 0: a row of zeros would be divided by 0.

        Args:
            ranked: A score for each atom; -inf where the atom must not stay.
        """
        axes = self.members[0].row_axes
        if axes is None:
            return torch.zeros_like(ranked, dtype=torch.bool)
        zeros = ~self.nonzero().to(ranked.device) & (ranked > -math.inf)
        return choose_best_of_slices(ranked.masked_fill(zeros, torch.finfo(ranked.dtype).min), axes)

    def round_keep(self, due: int) -> int:
        """Return the number of atoms that are kept where an allocation gives ``due``."""
        return self.pattern.round_kept(due, self.total, width=1)

    def arrange(self, weights: Tensor) -> Tensor:
        """Return a value for each weight as the pattern sees it: fused experts as one matrix."""
        input_axis = self.members[0].input_axis
        return weights if input_axis is None else stack_rows(weights, input_axis)

    def rearrange(self, weights: Tensor) -> Tensor:
        """Undo `arrange`."""
        member = self.members[0]
        if member.input_axis is None:
            return weights
        return unstack_rows(weights, member.mask.shape[0], member.input_axis)


def find_atoms(tensor: PrunedTensor, pattern: Pattern) -> Shard | None:
    """Return which part of the atoms of a tensor is local; None if all are.

    Raises:
        ValueError: If shards cut an atom, or weights that the pattern compares.
    """
    if tensor.shard is None:
        return None
    shard = tensor.shard.transpose(0, tensor.output_axis)
    if tensor.input_axis is not None:  # as `BlockGroup.arrange` does
        shard = shard.transpose(tensor.input_axis, 2).merge(0)
    return pattern.find_atoms(shard)
