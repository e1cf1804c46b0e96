"""What is ranked together: it scores itself and spreads one mask over its members."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_prune.recipe.atoms import Atoms, TensorAtoms
from lightning_prune.recipe.patterns import Pattern
from lightning_prune.recipe.tensor import PrunedTensor, Score
from lightning_prune.tensors import ranking
from lightning_prune.tensors.shards import Shard, local, total


@dataclass(kw_only=True, eq=False)
class Group:
    """What is ranked together: it scores itself and spreads one mask over its members.

    Patterns inside a tensor make groups of one; `ChannelPattern` makes larger ones, of which this
    is the base.

    Args:
        members: The tensors; the first says to which sparsity, by which glob and optimizer.
        pattern: What an atom is.
    """

    members: tuple[PrunedTensor, ...]
    pattern: Pattern

    @property
    def name(self) -> str:
        """The name of the first member."""
        return self.members[0].name

    @property
    def producers(self) -> tuple[str, ...]:
        """Names of the members whose sparsity it has."""
        return (self.name,)

    @property
    def size(self) -> int:
        """Number of what sparsity counts, pruned ones included: entries, or channels."""
        return self.members[0].total

    @property
    def kept(self) -> int:
        """Number of these that are not pruned."""
        return self.members[0].kept

    @property
    def changed(self) -> float:
        """Fraction of these that has changed since `forget_changes`."""
        return self.members[0].changes / self.size

    def forget_changes(self) -> None:
        """Begin to count changes anew."""
        for member in self.members:
            member.changes = 0

    @property
    def sparsity(self) -> float:
        """The final sparsity, that of the first member."""
        return self.members[0].sparsity

    @property
    def optimizer(self) -> int:
        """Index of the optimizer that owns it, that of the first member."""
        return self.members[0].optimizer

    @property
    def shard(self) -> Shard | None:
        """Which part of the atoms is here, in the order of the scores; None if all are."""
        member = self.members[0]
        return member.shard and member.shard.transpose(0, member.output_axis)

    @cached_property
    def total(self) -> int:
        """Number of atoms, pruned ones included."""
        return self.alive().numel()

    def alive(self) -> Tensor:
        """Return which atoms are not pruned: those with a kept entry anywhere."""
        return self._with_any(lambda member: member.mask)

    def nonzero(self) -> Tensor:
        """Return which atoms have a weight that is not 0, pruned or not."""
        return self._with_any(lambda member: member.weights != 0)

    @property
    def atoms_kept(self) -> int:
        """Number of atoms that are not pruned."""
        return int(self.alive().sum())

    def holds(self, due: int) -> bool:
        """Whether nothing has to go for the pattern's sake, where ``due`` atoms may be kept."""
        return self.pattern.holds(self.alive(), due)

    def atoms(self, score: Score | None, target: float) -> Atoms:
        """Return the atoms with their bounds.

        Args:
            score: A criterion's ``score``; None for a plan that needs none.
            target: The sparsity that is due now, in [0, 1].
        """
        scores = self.blank_scores() if score is None else self.scores(score)
        alive = self.alive()
        due = ranking.number_kept(self.total, target)
        protected, allowed = self.pattern.bounds(scores, alive, due)
        if self.sparsity < 1 and not protected.any():
            protected = ranking.best(scores.masked_fill(~allowed, -math.inf), 1)
        return TensorAtoms(
            shape=self.members[0].shape, scores=scores, protected=protected, allowed=allowed
        )

    def scores(self, score: Score) -> Tensor:
        """Return one score an atom: the mean over its entries.

        Args:
            score: A criterion's ``score``.

        Raises:
            ValueError: If a score is NaN or infinite, or scores have another shape than the tensor.
        """
        member = self.members[0]
        scores = member_scores(member, score)
        wide = scores if scores.dtype == torch.float64 else scores.float()
        return self.pattern.to_atoms(member.output_first(wide))

    def blank_scores(self) -> Tensor:
        """Return equal scores, for plans that need none."""
        member = self.members[0]
        return self.pattern.to_atoms(
            torch.zeros_like(member.output_first(member.weights), dtype=torch.float32)
        )

    def rounded(self, due: int) -> int:
        """Return how many atoms are kept where an allocation gives ``due``."""
        return self.pattern.round_kept(due, self.total, width=1)

    def choose(self, ranked: Tensor, keep: int) -> Tensor:
        """Return the bool mask of the atoms that are here and among the ``keep`` best of all."""
        return self.pattern(ranked, ranking.best_here(ranked, keep, self.shard))

    def exchange(self, share: float, drop: Score, grow: Score) -> None:
        """Drop a share of the kept atoms and let as many others grow, inside the pattern.

        Args:
            share: Fraction of the kept atoms, in [0, 1].
            drop: A criterion's ``score``; its lowest are dropped.
            grow: A criterion's ``score``; its highest grow. What has just been dropped comes last.
        """
        alive = self.alive()
        kept = int(total(alive.sum(), self.shard))
        exchanged = min(round(share * kept), self.total - kept)
        if exchanged == 0:
            return
        scores = self.scores(drop).masked_fill(~alive, -math.inf)
        survivors = self.choose(scores, kept - exchanged)
        scores = self.scores(grow)
        scores.masked_fill_(alive & ~survivors, torch.finfo(scores.dtype).min)
        scores.masked_fill_(survivors, math.inf)
        protected, allowed = self.pattern.bounds(scores, torch.ones_like(alive), kept)
        if int(total((survivors | protected).sum(), self.shard)) <= kept:
            scores.masked_fill_(protected, math.inf)
        chosen = self.choose(scores.masked_fill_(~allowed & ~survivors, -math.inf), kept)
        for member, entries in self._entries(chosen):
            member.regrow_to(entries)

    def keep_best(self, atoms: Atoms, keep: int) -> None:
        """Prune all but the best.

        Args:
            atoms: What `atoms` has returned.
            keep: How many stay, between floor and cap.
        """
        self.keep(self.choose(atoms.ranked(), keep))

    def keep(self, atoms: Tensor) -> None:
        """Set the members' masks from a bool mask of the atoms; what is pruned stays pruned."""
        for member, entries in self._entries(atoms):
            member.prune_to(entries)

    def _with_any(self, entries: Callable[[PrunedTensor], Tensor]) -> Tensor:
        """Return which atoms have an entry for which a bool tensor of a member is true."""
        member = self.members[0]
        return self.pattern.to_atoms(member.output_first(entries(member)).float()) > 0

    def _entries(self, atoms: Tensor) -> Iterator[tuple[PrunedTensor, Tensor]]:
        """Yield each member with its part of a bool mask of the atoms."""
        for member in self.members:
            shape = tuple(member.output_first(member.weights).shape)
            yield member, member.output_first(self.pattern.to_entries(atoms, shape))


def member_scores(member: PrunedTensor, score: Score, *, check: bool = True) -> Tensor:
    """Return one score an entry of what is here of a tensor.

    Args:
        member: The tensor.
        score: A criterion's ``score``.
        check: Whether to look at the scores; they need it once.

    Raises:
        ValueError: If a score is NaN or infinite, or scores have another shape than the tensor.
    """
    scores = local(score(member, member.state))
    if not check:
        return scores
    source = getattr(score, "__qualname__", score)
    if scores.shape != member.masking.shape:
        raise ValueError(
            f"need scores shaped as the tensor, {tuple(member.masking.shape)}, got "
            f"{tuple(scores.shape)} from {source} for '{member.name}'"
        )
    bad = int(total(_number_of_bad(scores), member.shard))
    if bad:
        raise ValueError(
            f"need finite scores, got {bad} NaN or infinite ones of {member.total} from "
            f"{source} for '{member.name}' at step {member.step}; "
            "its weights or gradients have diverged"
        )
    return scores


def _number_of_bad(scores: Tensor) -> Tensor:
    """Return how many scores are NaN or infinite; they are looked for only if there are any."""
    if scores.numel() == 0 or bool(torch.isfinite(torch.stack(scores.aminmax())).all()):
        return torch.tensor(0)
    return scores.numel() - torch.isfinite(scores).sum()
