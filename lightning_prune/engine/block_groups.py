"""Atoms of one tensor that a pattern bounds: blocks, N of M, the weights of each row."""

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from lightning_prune.engine.groups import Cut, Scores, TensorGroup, bound_atoms
from lightning_prune.recipe.atoms import Atoms
from lightning_prune.tensors.ranking import Share


@dataclass(kw_only=True, eq=False)
class BlockGroup(TensorGroup):
    """The atoms of one whole tensor, for a pattern with bounds or with atoms of several weights."""

    @cached_property
    def total(self) -> int:
        """Number of atoms, pruned ones included."""
        return self.alive().numel()

    @property
    def atoms_kept(self) -> int:
        """Number of atoms that are not pruned."""
        return int(self.alive().sum())

    def is_satisfied(self, due: int) -> bool:
        """Whether the pattern asks for no further pruning where ``due`` atoms may be kept."""
        return self.pattern.is_satisfied(self.alive(), due)

    def round_keep(self, due: int) -> int:
        """Return the number of atoms that are kept where an allocation gives ``due``."""
        return self.pattern.round_kept(due, self.total, width=1)

    def atoms(self, scores: Scores | None, target: float) -> Atoms:
        """Return the atoms with the pattern's bounds; the best stays unless all may go.

        Args:
            scores: The scores of the tensor; None for a plan that needs none.
            target: The sparsity that is due now, in [0, 1].
        """
        return bound_atoms(self, scores, target)

    def choose(self, atoms: Atoms, share: Share) -> Tensor:
        """Choose the atoms that stay, as the pattern says."""
        return self.pattern(atoms.rank(), share.keep)

    def alive_after(self, choice: Tensor | Cut) -> Tensor:
        """Return which atoms are alive once a choice is carried out."""
        assert isinstance(choice, Tensor)
        return choice & self.alive()

    def keep(self, choice: Tensor | Cut) -> None:
        """Prune the atoms that a bool mask leaves out."""
        assert isinstance(choice, Tensor)
        for member, weights in self.spread(choice):
            member.prune_to(weights)
