"""Pools: the groups that share a number to keep, and how it is divided among them."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_prune.engine.groups import Cut, Group, Scores
from lightning_prune.recipe.allocations import Allocation
from lightning_prune.recipe.atoms import Atoms
from lightning_prune.recipe.tensor import PrunedTensor
from lightning_prune.tensors.ranking import Share, compute_keep


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Groups with the same deciding glob and the same optimizer, allocated together.

    Weights that no optimizer trains are in pools of their own.

    Args:
        groups: At least one, in the order of the model.
        allocation: How the number to keep is divided among them.
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

    @property
    def tensors(self) -> tuple[PrunedTensor, ...]:
        """The members of all groups; a tensor comes as often as it is a member."""
        return tuple(member for group in self.groups for member in group.members)

    @property
    def is_dense(self) -> bool:
        """Whether nothing is pruned yet."""
        return all(tensor.kept == tensor.total for tensor in self.tensors)

    def reach(self, target: float) -> float:
        """Return the sparsity that the floors of the groups let the pool have at a target."""
        floors = sum(group.floor for group in self.groups)
        return min(target, 1 - floors / sum(group.total for group in self.groups))

    def plan(self) -> Mapping[str, float | None]:
        """Return the final sparsity of each group; None where it depends on the scores."""
        if self.allocation.needs_scores:
            return dict.fromkeys(group.name for group in self.groups)
        shares = self._share_out(None, self.sparsity)
        return {group.name: 1 - share.keep / atoms.total for group, atoms, share in shares}

    def is_satisfied(self, target: float, *, was_due_before: bool) -> bool:
        """Whether no more is kept than due, and nowhere more than the pattern holds.

        Rounding lets one group keep more than its due. It lets several groups do so together only
        if this target was already applied before a resume.

        Args:
            target: The sparsity that is due now, in [0, 1].
            was_due_before: Whether this target was already applied before a resume.
        """
        kept = [group.atoms_kept for group in self.groups]
        if was_due_before or len(self.groups) == 1:
            kept = [_undo_rounding(*pair) for pair in zip(self.groups, kept, strict=True)]
        return sum(kept) <= self._due(target) and all(
            group.is_satisfied(compute_keep(group.total, target)) for group in self.groups
        )

    def choose(self, target: float, scores: Scores) -> Iterator[tuple[Group, Tensor | Cut]]:
        """Yield each group with the choice of its atoms at a sparsity.

        Args:
            target: The sparsity that is due now, in [0, 1].
            scores: The scores of the members.
        """
        for group, atoms, share in self._share_out(scores, target):
            yield group, group.choose(atoms, share)

    def _due(self, target: float) -> int:
        return compute_keep(sum(group.total for group in self.groups), target)

    def _share_out(
        self, scores: Scores | None, target: float
    ) -> Iterator[tuple[Group, Atoms, Share]]:
        """Yield each group with its atoms and its share of the number to keep."""
        atoms = {group.name: group.atoms(scores, target) for group in self.groups}
        floor = sum(of_group.floor for of_group in atoms.values())
        cap = sum(of_group.cap for of_group in atoms.values())
        due = min(max(self._due(target), floor), cap)
        shares = self.allocation.share_out(atoms, due)
        _check_shares(self.allocation, atoms, shares, due)
        for group in self.groups:
            of_group, share = atoms.pop(group.name), shares[group.name]
            keep = min(group.round_keep(share.keep), of_group.cap)
            yield group, of_group, Share(keep=keep, threshold=share.threshold)


def _check_shares(
    allocation: Allocation, atoms: Mapping[str, Atoms], shares: Mapping[str, Share], due: int
) -> None:
    """Raise ValueError, naming the allocation, if it does not spend exactly within the bounds."""
    name = type(allocation).__name__
    if shares.keys() != atoms.keys() or sum(share.keep for share in shares.values()) != due:
        raise ValueError(
            f"need {name} to divide exactly {due} atoms among {', '.join(atoms)}, got "
            f"{ ({each: share.keep for each, share in shares.items()}) }"
        )
    for each, share in shares.items():
        if not atoms[each].floor <= share.keep <= atoms[each].cap:
            raise ValueError(
                f"need {name} to keep {atoms[each].floor} to {atoms[each].cap} atoms of '{each}', "
                f"got {share.keep}"
            )


def _undo_rounding(group: Group, kept: int) -> int:
    """Return the least number of atoms that rounding turns into the kept number, or more."""
    if group.round_keep(max(kept - 1, 0)) < kept <= group.round_keep(kept):
        return kept
    return bisect_left(range(group.total + 1), kept, key=group.round_keep)


def make_pools(groups: Sequence[Group], allocation: Allocation) -> tuple[Pool, ...]:
    """Return the pools of groups: each group alone if the allocation shares no budget.

    An isomorphic allocation has a pool for each kind of group.
    """
    pooled: dict[tuple[str, int, bool, str, str], list[Group]] = {}
    for group in groups:
        alone, first = "" if allocation.shares_budget else group.name, group.members[0]
        kind = group.kind if allocation.isomorphic else ""
        key = first.glob, group.optimizer, first.is_trained, alone, kind
        pooled.setdefault(key, []).append(group)
    return tuple(Pool(groups=tuple(some), allocation=allocation) for some in pooled.values())
