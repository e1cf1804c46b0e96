"""Pools: the groups that share a number to keep, and how it is divided among them."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from lightning_prune.engine.choices import Choice
from lightning_prune.engine.groups import Group, Scores
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
        savings: The cost that an atom saves for each of the weights in the atom, by the name of the
            group; empty if the allocation reads no savings.
    """

    groups: tuple[Group, ...]
    allocation: Allocation
    savings: Mapping[str, float] = field(default_factory=dict)

    @property
    def sparsity(self) -> float:
        """The final sparsity."""
        return self.groups[0].sparsity

    @property
    def optimizer(self) -> int:
        """Index of the optimizer that owns the tensors."""
        return self.groups[0].optimizer

    @cached_property
    def tensors(self) -> tuple[PrunedTensor, ...]:
        """The members of all groups; a tensor comes as often as it is a member."""
        return tuple(member for group in self.groups for member in group.members)

    @property
    def may_return(self) -> bool:
        """Whether an update may keep atoms again that an earlier update has pruned."""
        return self.groups[0].may_return

    @property
    def atoms_kept(self) -> dict[str, int]:
        """The number of atoms that each group keeps, by name."""
        return {group.name: group.atoms_kept for group in self.groups}

    @property
    def is_dense(self) -> bool:
        """Whether nothing is pruned yet."""
        return all(tensor.kept == tensor.total for tensor in self.tensors)

    def reach(self, target: float) -> float:
        """Return the sparsity that the floors of the groups let the pool have at a target."""
        floors = sum(group.floor for group in self.groups)
        return min(target, 1 - floors / sum(group.total for group in self.groups))

    def plan(self, affordable: Mapping[str, int]) -> Mapping[str, float | None]:
        """Return the final sparsity of each group; None where it depends on the scores.

        Args:
            affordable: The numbers of atoms that budgets let the groups keep in the end; empty
                without a budget.
        """
        if self.allocation.needs_scores:
            return dict.fromkeys(group.name for group in self.groups)
        keeps = affordable
        if not affordable:
            atoms = self.read_bounds(self.sparsity)
            keeps = self.round_keeps(self._share_out(atoms, self.sparsity), atoms)
        return {group.name: 1 - keeps[group.name] / group.total for group in self.groups}

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

    def choose(self, target: float, scores: Scores) -> Iterator[tuple[Group, Choice]]:
        """Yield each group with the choice of its atoms at a sparsity.

        Args:
            target: The sparsity that is due now, in [0, 1].
            scores: The scores of the members.
        """
        atoms = self._read(scores, target)
        yield from self._choose(atoms, self._share_out(atoms, target))

    def read_bounds(self, target: float = 0.0) -> dict[str, Atoms]:
        """Return the atoms of each group without scores, for an allocation that needs none.

        Args:
            target: The sparsity that is due, in [0, 1].
        """
        return self._read(None, target)

    def clamp_due(self, atoms: Mapping[str, Atoms], target: float) -> int:
        """Return the number of atoms to keep at a sparsity, between floors and caps.

        Args:
            atoms: The atoms of each group.
            target: The sparsity, in [0, 1].
        """
        floor = sum(of_group.floor for of_group in atoms.values())
        cap = sum(of_group.cap for of_group in atoms.values())
        return min(max(self._due(target), floor), cap)

    def round_keeps(
        self, shares: Mapping[str, Share], atoms: Mapping[str, Atoms]
    ) -> dict[str, int]:
        """Return the numbers that groups keep where an allocation gives them shares.

        Args:
            shares: The shares of the allocation, by name.
            atoms: The atoms of each group.
        """
        return {
            group.name: min(group.round_keep(shares[group.name].keep), atoms[group.name].cap)
            for group in self.groups
        }

    def choose_keeps(
        self, keeps: Mapping[str, int], scores: Scores
    ) -> Iterator[tuple[Group, Choice]]:
        """Yield each group with the choice of a number of atoms.

        Args:
            keeps: The number of each group, between floor and cap.
            scores: The scores of the members.
        """
        for group in self.groups:
            yield group, group.choose(group.atoms(scores, 0.0), Share(keep=keeps[group.name]))

    def choose_most(
        self, fits: Callable[[Mapping[str, int]], bool], scores: Scores
    ) -> tuple[dict[str, int], Iterator[tuple[Group, Choice]]]:
        """Return the largest numbers of kept atoms that fit, and the choices of these atoms.

        Args:
            fits: Whether numbers of kept atoms, by name, are within the budgets.
            scores: The scores of the members.
        """
        atoms = self._read(scores, 0.0)
        bounds = {name: of_group.cap for name, of_group in atoms.items()}

        def fits_rounded(keeps: Mapping[str, int]) -> bool:
            return fits(
                {g.name: min(g.round_keep(keeps[g.name]), bounds[g.name]) for g in self.groups}
            )

        shares = self.allocation.share_out_most(atoms, fits_rounded)
        _check_shares(self.allocation, atoms, shares, sum(share.keep for share in shares.values()))
        return self.round_keeps(shares, atoms), self._choose(atoms, shares)

    def _choose(
        self, atoms: dict[str, Atoms], shares: Mapping[str, Share]
    ) -> Iterator[tuple[Group, Choice]]:
        """Yield each group with the choice of its share, rounded; atoms are let go in turn."""
        keeps = self.round_keeps(shares, atoms)
        for group in self.groups:
            share = Share(keep=keeps[group.name], threshold=shares[group.name].threshold)
            yield group, group.choose(atoms.pop(group.name), share)

    def _due(self, target: float) -> int:
        return compute_keep(sum(group.total for group in self.groups), target)

    def _read(self, scores: Scores | None, target: float) -> dict[str, Atoms]:
        atoms = {group.name: group.atoms(scores, target) for group in self.groups}
        for name, of_group in atoms.items():
            of_group.saving = self.savings.get(name, 1.0)
        return atoms

    def _share_out(self, atoms: Mapping[str, Atoms], target: float) -> Mapping[str, Share]:
        """Return the shares of the number to keep at a sparsity."""
        due = self.clamp_due(atoms, target)
        if len(self.groups) == 1:  # no allocation has a choice
            return {self.groups[0].name: Share(keep=due)}
        shares = self.allocation.share_out(atoms, due)
        _check_shares(self.allocation, atoms, shares, due)
        return shares


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


def make_pools(
    groups: Sequence[Group], allocation: Allocation, savings: Mapping[str, float], *, by_glob: bool
) -> tuple[Pool, ...]:
    """Return the pools of groups: each group alone if the allocation shares no number to keep.

    An isomorphic allocation has a pool for each kind of group.

    Args:
        groups: All groups.
        allocation: How a pool divides a number to keep.
        savings: As in `Pool`.
        by_glob: Whether groups of different globs are in different pools.
    """
    pooled: dict[tuple[str, int, bool, str, str], list[Group]] = {}
    for group in groups:
        alone, first = "" if allocation.shares_budget else group.name, group.members[0]
        kind = group.kind if allocation.isomorphic else ""
        key = first.glob if by_glob else "", group.optimizer, first.is_trained, alone, kind
        pooled.setdefault(key, []).append(group)
    return tuple(
        Pool(groups=tuple(together), allocation=allocation, savings=savings)
        for together in pooled.values()
    )
