"""What shares a budget: the groups of a pool, brought together to what is due."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lightning_prune.engine.groups import Group
from lightning_prune.recipe.allocations import Allocation
from lightning_prune.recipe.atoms import Atoms
from lightning_prune.recipe.tensor import Score
from lightning_prune.tensors import ranking


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Groups with the same deciding glob and the same optimizer, allocated together.

    Args:
        groups: At least one, in the order of the model.
        allocation: How what is kept is divided among them.
    """

    groups: tuple[Group, ...]
    allocation: Allocation

    @property
    def sparsity(self) -> float:
        """The final sparsity."""
        return self.groups[0].sparsity

    @property
    def optimizer(self) -> int:
        """Index of the optimizer that owns the tensors."""
        return self.groups[0].optimizer

    def plan(self) -> Mapping[str, float | None]:
        """Return the final sparsity of each group; None where it depends on the scores."""
        if self.allocation.needs_scores:
            return dict.fromkeys(group.name for group in self.groups)
        kept = self._kept(None, self.sparsity)
        return {group.name: 1 - keep / atoms.total for group, atoms, keep in kept}

    def prune(self, target: float, score: Score, *, again: bool = False) -> None:
        """Bring the masks to a sparsity, unless no more than that is kept already.

        Args:
            target: What is due now, in [0, 1].
            score: A criterion's ``score``.
            again: Whether it was due before already, so that what is kept may come from there.
        """
        if self._is_satisfied(target, again=again):
            return
        for group, atoms, keep in self._kept(score, target):
            group.keep_best(atoms, keep)

    @property
    def is_dense(self) -> bool:
        """Whether nothing is pruned yet."""
        return all(tensor.kept == tensor.total for group in self.groups for tensor in group.members)

    def _is_satisfied(self, target: float, *, again: bool) -> bool:
        """Whether no more is kept than due, and nowhere more than the pattern holds.

        A group may keep more than its due because that is rounded. Several groups may not do so
        together, unless what they keep was allocated at this due already.
        """
        kept = [group.atoms_kept for group in self.groups]
        if again or len(self.groups) == 1:
            kept = [_least_due(*one) for one in zip(self.groups, kept, strict=True)]
        return sum(kept) <= self._due(target) and all(
            group.holds(ranking.number_kept(group.total, target)) for group in self.groups
        )

    def _due(self, target: float) -> int:
        return ranking.number_kept(sum(group.total for group in self.groups), target)

    def _kept(self, score: Score | None, target: float) -> Iterator[tuple[Group, Atoms, int]]:
        """Yield each group with its atoms and how many of them stay at a sparsity."""
        atoms = {group.name: group.atoms(score, target) for group in self.groups}
        floor, cap = sum(a.floor for a in atoms.values()), sum(a.cap for a in atoms.values())
        keep = self.allocation(atoms, min(max(self._due(target), floor), cap))
        for group in self.groups:
            its = atoms[group.name]
            yield group, its, min(group.rounded(keep[group.name]), its.cap)


def _least_due(group: Group, kept: int) -> int:
    """Return the least number of atoms of which rounding makes what is kept, or more."""
    if group.rounded(max(kept - 1, 0)) < kept <= group.rounded(kept):
        return kept
    return bisect_left(range(group.total + 1), kept, key=group.rounded)


def pools(groups: Sequence[Group], allocation: Allocation) -> list[Pool]:
    """Return the groups by what they share a budget with: each alone if the allocation says so."""
    together: dict[tuple[str, int, str], list[Group]] = {}
    for group in groups:
        alone = "" if allocation.pooled else group.name
        together.setdefault((group.members[0].glob, group.optimizer, alone), []).append(group)
    return [Pool(groups=tuple(some), allocation=allocation) for some in together.values()]
