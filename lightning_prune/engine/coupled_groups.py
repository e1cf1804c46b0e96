"""Groups whose atoms lie in several tensors: what such groups count."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from lightning_prune.engine.bounded_groups import BoundedGroup
from lightning_prune.engine.choices import Settled
from lightning_prune.engine.groups import Scores
from lightning_prune.recipe.tensor import PrunedTensor
from lightning_prune.tensors.slices import Slices


@dataclass(kw_only=True, eq=False)
class CoupledGroup(BoundedGroup):
    """A group whose atoms live or die together in all members where they lie.

    Each process knows all atoms, also where members are sharded: the parts of an atom are combined
    over the processes, which ask together.
    """

    _kept: int = field(init=False)
    _changes: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._kept = int(self.alive().sum())

    @property
    def kept(self) -> int:
        """Number of atoms that are not pruned."""
        return self._kept

    @property
    def changed(self) -> float:
        """Fraction of the atoms that has changed since `forget_changes`."""
        return self._changes / self.total

    @property
    def size(self) -> int:
        """Number of atoms, pruned ones included."""
        return self.total

    @property
    def atoms_kept(self) -> int:
        """Number of atoms that are not pruned."""
        return self._kept

    def forget_changes(self) -> None:
        """Begin to count changes anew."""
        self._changes = 0
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
        counts = super().intersect(choice)
        before, self._kept = self._kept, int(self.alive().sum())
        self._changes += before - self._kept
        return counts

    @abstractmethod
    def find_any(self, weights: Callable[[PrunedTensor], Tensor]) -> Tensor:
        """Return which atoms have a weight for which a bool tensor of a member is true."""


def slice_member(member: PrunedTensor, axis: int, read: Callable[[], Tensor]) -> Slices:
    """Return the slices of a member along an axis.

    Args:
        member: The member.
        axis: The axis of the parameter.
        read: Returns a value for each local weight, in the shape of the parameter.
    """
    return Slices(read=read, axis=axis, shard=member.shard, size=member.total)


def read_scores(member: PrunedTensor, scores: Scores) -> Tensor:
    """Return the scores of the local weights of a member, in the shape of the parameter."""
    return member.output_first(scores[member.name].whole)
