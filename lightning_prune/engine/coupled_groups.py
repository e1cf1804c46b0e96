"""Groups whose atoms lie in several tensors: what such groups count."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from lightning_prune.engine.bounded_groups import BoundedGroup
from lightning_prune.engine.choices import Settled
from lightning_prune.recipe.tensor import PrunedTensor


@dataclass(kw_only=True, eq=False)
class CoupledGroup(BoundedGroup):
    """A group whose atoms live or die together in all members where they lie."""

    _before: int | None = field(init=False, default=None)  # kept at the last `forget_changes`

    @property
    def kept(self) -> int:
        """Number of atoms that are not pruned."""
        return self.atoms_kept

    @property
    def changed(self) -> float:
        """Fraction of the atoms that has changed since `forget_changes`."""
        return 0.0 if self._before is None else (self._before - self.atoms_kept) / self.total

    @property
    def size(self) -> int:
        """Number of atoms, pruned ones included."""
        return self.total

    def forget_changes(self) -> None:
        """Begin to count changes anew."""
        self._before = self.atoms_kept
        for member in self.members:
            member.changes = 0

    def alive(self) -> Tensor:
        """Return which atoms are not pruned."""
        return self.find_any(lambda member: member.mask.kept)

    def nonzero(self) -> Tensor:
        """Return which atoms have a weight that is not 0."""
        return self.find_any(lambda member: member.weights != 0)

    def intersect(self, choice: Settled) -> dict[PrunedTensor, Tensor]:
        """Prune the atoms that a bool mask leaves out, and count those that stay."""
        super().intersect(choice)
        return {member: member.mask.count() for member in self.members}

    @abstractmethod
    def find_any(self, weights: Callable[[PrunedTensor], Tensor]) -> Tensor:
        """Return which atoms have a weight for which a bool tensor of a member is true."""
