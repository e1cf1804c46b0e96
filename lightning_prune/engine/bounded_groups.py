"""Groups whose pattern may bound the choice of the atoms."""

import math
from functools import partial

import torch
from torch import Tensor

from lightning_prune.engine.choices import Choice, Quota, Settled
from lightning_prune.engine.groups import Group, Scores, count_atoms
from lightning_prune.engine.tally import Counted, Tally
from lightning_prune.recipe.atoms import Atoms, PlannedAtoms, TensorAtoms, count_bounds
from lightning_prune.recipe.block_pattern import BlockPattern
from lightning_prune.recipe.nm_pattern import NMPattern
from lightning_prune.recipe.tensor import PrunedTensor
from lightning_prune.tensors.parts import count_pieces
from lightning_prune.tensors.ranking import Share, choose_best, compute_keep, count_best_local
from lightning_prune.tensors.shards import sum_shards
from lightning_prune.tensors.thresholds import cut_pieces

_CHOOSES_BEST = (NMPattern.__call__, BlockPattern.__call__)
"""The calls of patterns that keep the best scores, of equal scores the first."""


class BoundedGroup(Group):
    """A group whose pattern may bound the choice; a choice is a bool mask of the local atoms."""

    _counted: tuple[object, int, int] | None = None  # versions of masks, and numbers of atoms
    _all_fitting: int | None = None  # how many of all atoms can stay together

    @property
    def atoms_kept(self) -> int:
        """Number of atoms that are not pruned; processes with shards must ask together."""
        return self._count()[0]

    def ask(self, tally: Tally) -> None:
        """Let a tally count the atoms, if the mask has changed since they were counted last."""
        if self._counted is None or self._counted[0] != self._find_versions():
            tally.add(*self.count_atoms(self.alive()))
        if self.may_return and self._all_fitting is None:
            fitting = self.pattern.count_fitting(torch.ones_like(self.alive()))
            tally.add(fitting, self.shard, partial(setattr, self, "_all_fitting"))

    def count_atoms(self, alive: Tensor) -> Counted:
        """Count the atoms that are not pruned; the numbers are taken while the mask says the same.

        Args:
            alive: Bool mask of these atoms.
        """

        def take(kept: int, fitting: int) -> None:
            self._counted = self._find_versions(), kept, fitting

        counts = torch.stack([count_pieces(alive), self.pattern.count_fitting(alive)])
        return counts, self.shard, take

    def is_satisfied(self, due: int) -> bool:
        """Whether the pattern asks for no further pruning where ``due`` atoms may be kept."""
        if (counts := self._count_bounds(due)) is not None:
            return counts[1] == self.atoms_kept
        alive = self.alive()
        is_satisfied = self.pattern.is_satisfied(alive, self.share_due(due, alive))
        if self.shard is None:
            return is_satisfied
        unsatisfied = torch.tensor(int(not is_satisfied), device=alive.device)
        return not int(sum_shards(unsatisfied, self.shard))

    def atoms(self, scores: Scores | None, target: float) -> Atoms:
        """Return the atoms with the pattern's bounds; the best stay, as many as the floor.

        Args:
            scores: The scores of the members; None for a plan that needs none.
            target: The sparsity that is due now, in [0, 1].
        """
        due = compute_keep(self.total, target)
        counts = None if self.rows else self._count_bounds(due, all_compete=self.may_return)
        if scores is not None or counts is None:
            return self._bound(scores, due, counts)
        held, may_stay = counts
        return PlannedAtoms(
            shape=self.members[0].shape,
            shard=self.shard,
            total=self.total,
            counts=(max(held, min(self.floor, may_stay)), may_stay),
            read=lambda: self._bound(None, due, counts),
        )

    def _bound(self, scores: Scores | None, due: int, counts: tuple[int, int] | None) -> Atoms:
        """Return the atoms with masks.

        Args:
            scores: The scores of the members; None for equal scores.
            due: Number of atoms that may be kept.
            counts: Numbers of protected and of allowed atoms; None to count them.
        """
        alive = self.alive()
        if self.may_return:
            alive.fill_(True)
        if scores is None:
            ranked = torch.zeros_like(alive, dtype=torch.float32)
        else:
            ranked = self.rank(scores)
        protected, allowed = self.find_bounds(ranked, alive, due)
        if self.rows:
            protected = protected | self.find_row_holders(ranked.masked_fill(~allowed, -math.inf))
        held, may_stay = counts or count_bounds(protected, allowed, self.shard)
        least = min(self.floor, may_stay)
        if least > held:
            bounded = ranked
            if may_stay < self.total:
                bounded = bounded.masked_fill(~allowed, -math.inf)
            if held:
                bounded = bounded.masked_fill(protected, math.inf)
            protected = choose_best(bounded, count_best_local(bounded, least, self.shard))
        return TensorAtoms(
            shape=self.members[0].shape,
            scores=ranked,
            protected=protected,
            allowed=allowed,
            shard=self.shard,
            counts=(max(held, least), may_stay),
        )

    def _count_bounds(self, due: int, *, all_compete: bool = False) -> tuple[int, int] | None:
        """Return the numbers of protected and of allowed atoms, if numbers alone say so."""
        if self.shard is not None:
            return None
        kept, fitting = self._count()
        if all_compete:
            assert self._all_fitting is not None
            kept, fitting = self.total, self._all_fitting
        return self.pattern.count_bounds(self.total, kept, fitting, due)

    def _count(self) -> tuple[int, int]:
        """Return the number of atoms that are not pruned, and how many of them can stay."""
        count_atoms([self])
        assert self._counted is not None
        return self._counted[1:]

    def _find_versions(self) -> object:
        """Return what changes with the masks; two results differ if changes leave no trace."""
        versions = [(member.mask, member.mask.version) for member in self.members]
        return versions if all(version is not None for _, version in versions) else object()

    def choose(self, atoms: Atoms, share: Share) -> Choice:
        """Choose the atoms that stay, as the pattern says; at a bound nothing is ranked.

        On an accelerator, the best atoms of many tensors are found together.
        """
        if share.keep == atoms.floor:
            return atoms.protected
        if share.keep == atoms.cap:
            return atoms.allowed
        if self.shard is not None or type(self.pattern).__call__ not in _CHOOSES_BEST:
            return self.choose_local(atoms.rank(), share.keep)
        part, shape = atoms.part, atoms.scores.shape

        def cut(value: float, ties: int | None) -> Tensor:
            return torch.cat(list(cut_pieces(part.read(1), value, ties))).view(shape)

        quota = Quota(part=part, share=Share(keep=share.keep), shape=shape, is_held=True, cut=cut)
        return quota if part.is_batched else quota.settle()

    def alive_after(self, choice: Settled) -> Tensor:
        """Return which atoms are alive once a choice is carried out."""
        assert isinstance(choice, Tensor)
        return choice & self.alive()

    def intersect(self, choice: Settled) -> dict[PrunedTensor, Tensor]:
        """Prune the atoms that a bool mask leaves out, wherever they lie."""
        assert isinstance(choice, Tensor)
        for member, weights in self.spread(choice):
            member.mask.intersect(weights)
        return {}
