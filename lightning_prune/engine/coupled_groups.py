"""Groups whose atoms lie in several tensors: what such groups count."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from lightning_prune.engine.bounded_groups import BoundedGroup
from lightning_prune.engine.choices import Settled
from lightning_prune.engine.groups import Scores, count_atoms
from lightning_prune.recipe.tensor import PrunedTensor
from lightning_prune.tensors.slices import Slices


@dataclass(kw_only=True, eq=False)
class CoupledGroup(BoundedGroup):
    """A group whose atoms live or die together in all members where they lie.

    Each process knows all atoms, also where members are sharded: the parts of an atom are combined
    over the processes, which ask together.
    """

    _before: int | None = field(init=False, default=None)  # kept at the last `forget_changes`

    def __post_init__(self) -> None:
        self._count_shards()

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
        self._count_shards()
        return {member: member.mask.count() for member in self.members}

    def _count_shards(self) -> None:
        """Count the atoms of shards while all processes are here: later one alone may ask."""
        if any(member.shard is not None for member in self.members):
            count_atoms([self])

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
