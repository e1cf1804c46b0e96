"""Groups whose pattern may bound the choice of the atoms."""

import math

import torch
from torch import Tensor

from lightning_prune.engine.choices import Settled
from lightning_prune.engine.groups import Group, Scores
from lightning_prune.recipe.atoms import Atoms, TensorAtoms, count_bounds
from lightning_prune.recipe.tensor import PrunedTensor
from lightning_prune.tensors.ranking import Share, choose_best, compute_keep, count_best_local
from lightning_prune.tensors.shards import sum_shards


class BoundedGroup(Group):
    """A group whose pattern may bound the choice; a choice is a bool mask of the local atoms."""

    def is_satisfied(self, due: int) -> bool:
        """Whether the pattern asks for no further pruning where ``due`` atoms may be kept."""
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
        alive = self.alive()
        if self.may_return:
            alive.fill_(True)
        if scores is None:
            ranked = torch.zeros_like(alive, dtype=torch.float32)
        else:
            ranked = self.rank(scores)
        protected, allowed = self.find_bounds(ranked, alive, compute_keep(self.total, target))
        if self.rows:
            protected = protected | self.find_row_holders(ranked.masked_fill(~allowed, -math.inf))
        held, may_stay = count_bounds(protected, allowed, self.shard)
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

    def choose(self, atoms: Atoms, share: Share) -> Tensor:
        """Choose the atoms that stay, as the pattern says; at a bound nothing is ranked."""
        if share.keep == atoms.floor:
            return atoms.protected
        if share.keep == atoms.cap:
            return atoms.allowed
        return self.choose_local(atoms.rank(), share.keep)

    def alive_after(self, choice: Settled) -> Tensor:
        """Return which atoms are alive once a choice is carried out."""
        assert isinstance(choice, Tensor)
        return choice & self.alive()

    def intersect(self, choice: Settled) -> dict[PrunedTensor, Tensor]:
        """Prune the atoms that a bool mask leaves out, wherever they lie."""
        assert isinstance(choice, Tensor)
        for member, weights in self.spread(choice):
            member.mask.intersect(weights)
        return {member: member.mask.count() for member in self.members}
