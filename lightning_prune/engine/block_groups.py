"""Atoms of one tensor that a pattern bounds: blocks, N of M, the weights of each row."""

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from lightning_prune.engine.groups import BoundedGroup, TensorGroup
from lightning_prune.models.experts import stack_rows, unstack_rows


@dataclass(kw_only=True, eq=False)
class BlockGroup(TensorGroup, BoundedGroup):
    """The atoms of one whole tensor, for a pattern with bounds or with atoms of several weights."""

    @cached_property
    def total(self) -> int:
        """Number of atoms, pruned ones included."""
        return self.alive().numel()

    @property
    def atoms_kept(self) -> int:
        """Number of atoms that are not pruned."""
        return int(self.alive().sum())

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
