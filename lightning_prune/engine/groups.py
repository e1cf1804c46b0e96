"""A group: the weights that are ranked together, and share one mask of atoms."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_prune.engine.choices import Choice, Settled
from lightning_prune.engine.extents import Extent
from lightning_prune.engine.scores import TensorScores
from lightning_prune.engine.tally import Counted, Tally
from lightning_prune.recipe.atoms import Atoms
from lightning_prune.recipe.patterns import Pattern
from lightning_prune.recipe.tensor import PrunedTensor
from lightning_prune.tensors.parts import count_pieces
from lightning_prune.tensors.ranking import Share, compute_keep, count_best_local
from lightning_prune.tensors.shards import Shard, sum_shards

if TYPE_CHECKING:
    from lightning_prune.channels.coupling import ChannelPlace

Scores = Mapping[str, TensorScores]
"""The scores of an update by the name of the tensor."""


@dataclass(kw_only=True, eq=False)
class Group(ABC):
    """Weights that are ranked together: of one tensor, or of the tensors that channels span.

    `choose` decides and may raise; `keep` and `regrow` carry a decision out and do not.

    Args:
        members: The tensors; the first says to which sparsity, by which glob and optimizer.
        pattern: What an atom is.
    """

    members: tuple[PrunedTensor, ...]
    pattern: Pattern

    @property
    def may_return(self) -> bool:
        """Whether an update may keep atoms again that an earlier update has pruned."""
        return self.members[0].may_return

    @property
    def sparsity(self) -> float:
        """The final sparsity, that of the first member."""
        return self.members[0].sparsity

    @property
    def optimizer(self) -> int:
        """Index of the optimizer that owns the group, that of the first member."""
        return self.members[0].optimizer

    @property
    def shard(self) -> Shard | None:
        """Which part of the atoms is local, in the order of the scores; None if all are."""
        return None

    @property
    @abstractmethod
    def name(self) -> str:
        """The name of the first member, with a range where the group is a part of it."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """A description that groups share if their atoms are alike and may be ranked together."""

    @property
    @abstractmethod
    def producers(self) -> tuple[str, ...]:
        """Names of the members whose sparsity the group has."""

    @property
    def removable_places(self) -> "Sequence[ChannelPlace]":
        """Where the atoms lie in parameters and buffers, if they can be removed; else nowhere."""
        return ()

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of weights, or channels, that sparsity counts, pruned ones included."""

    @property
    @abstractmethod
    def weights_per_atom(self) -> float:
        """Number of scored weights in an atom; the score of the atom is their mean."""

    @property
    @abstractmethod
    def kept(self) -> int:
        """Number of weights, or channels, that are not pruned."""

    @property
    @abstractmethod
    def changed(self) -> float:
        """Fraction of the weights, or channels, that has changed since `forget_changes`."""

    @abstractmethod
    def forget_changes(self) -> None:
        """Begin to count changes anew."""

    @property
    @abstractmethod
    def total(self) -> int:
        """Number of atoms, pruned ones included."""

    @property
    @abstractmethod
    def atoms_kept(self) -> int:
        """Number of atoms that are not pruned."""

    def ask(self, tally: Tally) -> None:  # noqa: B027
        """Let a tally count the atoms, if the mask has changed since they were counted last."""

    @property
    def rows(self) -> int:
        """Number of rows that must each keep an atom, also at sparsity 1; else 0."""
        return 0

    @property
    def floor(self) -> int:
        """Least number of atoms that stay: one, unless all may go, each row's, and by the cap."""
        capped = compute_keep(self.total, self.members[0].most)
        return max(int(self.sparsity < 1), self.rows, capped)

    def leaves_rows(self, sparsity: float) -> bool:
        """Whether each row can keep an atom at a sparsity of this group alone."""
        return compute_keep(self.total, sparsity) >= self.rows

    def count_lost_rows(self) -> int:
        """Count the rows that keep no atom."""
        return 0

    @abstractmethod
    def extents(self) -> Iterator[Extent]:
        """Yield where the atoms lie, in all members."""

    @abstractmethod
    def alive(self) -> Tensor:
        """Return which local atoms are not pruned: those with a kept weight anywhere."""

    @abstractmethod
    def nonzero(self) -> Tensor:
        """Return which local atoms have a weight that is not 0, pruned or not."""

    @abstractmethod
    def is_satisfied(self, due: int) -> bool:
        """Whether the pattern asks for no further pruning where ``due`` atoms may be kept."""

    @abstractmethod
    def round_keep(self, due: int) -> int:
        """Return the number of atoms that are kept where an allocation gives ``due``."""

    @abstractmethod
    def rank(self, scores: Scores) -> Tensor:
        """Return a score for each local atom: the mean of the scores of its weights."""

    @abstractmethod
    def atoms(self, scores: Scores | None, target: float) -> Atoms:
        """Return the atoms with their bounds.

        Args:
            scores: The scores of the members; None for a plan that needs none.
            target: The sparsity that is due now, in [0, 1].
        """

    def find_row_holders(self, ranked: Tensor) -> Tensor:
        """Return the best atom of each row, which stays; none where rows may go.

        Args:
            ranked: A score for each local atom; -inf where the atom must not stay.
        """
        return torch.zeros_like(ranked, dtype=torch.bool)

    @abstractmethod
    def choose(self, atoms: Atoms, share: Share) -> Choice:
        """Choose the atoms that stay.

        Args:
            atoms: The result of `atoms`.
            share: How many stay, between floor and cap.
        """

    @abstractmethod
    def alive_after(self, choice: Settled) -> Tensor:
        """Return which local atoms are alive once a choice is carried out."""

    def foresee(self, choice: Settled) -> Iterator[Counted]:
        """Yield numbers that hold once a choice is carried out; then they are to be taken.

        Members are left out that are counted while the choice is carried out.
        """
        return iter(())

    @abstractmethod
    def intersect(self, choice: Settled) -> dict[PrunedTensor, Tensor]:
        """Prune the atoms that a choice, or a bool mask of local atoms, leaves out.

        Returns:
            The number of kept local weights of each member that `foresee` leaves out.
        """

    def renew(self, choice: Settled) -> dict[PrunedTensor, Tensor]:
        """Keep the atoms of a choice, and prune all others; atoms may return.

        Returns:
            The numbers of kept and of changed local weights of each member that `foresee` leaves
            out.
        """
        assert isinstance(choice, Tensor)
        for member, weights in self.spread(choice):
            member.mask.set(weights)
        return {}

    def keep(self, choice: Settled) -> None:
        """Prune the atoms that a choice leaves out, and note the numbers of kept weights."""
        tally, foreseen = Tally(), list(self.foresee(choice))
        for member, count in self.intersect(choice).items():
            tally.add(count, member.shard, member.note_changed)
        for counted in foreseen:
            tally.add(*counted)
        tally.read()

    @abstractmethod
    def spread(self, atoms: Tensor) -> Iterator[tuple[PrunedTensor, Tensor]]:
        """Yield each member with its part of a bool mask of the local atoms."""

    def count_exchanged(self, kept: int, share: float) -> int:
        """Return how many atoms regrowth exchanges.

        Args:
            kept: Number of kept atoms.
            share: Fraction of the kept atoms, in [0, 1].
        """
        return min(round(share * kept), self.total - kept, kept - self.rows)

    def choose_exchange(
        self, alive: Tensor, kept: int, exchanged: int, *, drop: Scores, grow: Scores
    ) -> Tensor:
        """Choose the mask after a number of kept atoms is dropped and as many others grow.

        Args:
            alive: Which local atoms are kept before.
            kept: Number of atoms that are kept before, also of other processes.
            exchanged: Number of atoms to exchange.
            drop: The atoms of the lowest scores are dropped.
            grow: The atoms of the highest scores grow; those that are dropped come last.

        Returns:
            A bool mask of the local atoms that keeps as many as before.
        """
        scores = self.rank(drop).masked_fill(~alive, -math.inf)
        if self.rows:
            scores.masked_fill_(self.find_row_holders(scores), math.inf)
        survivors = self.choose_local(scores, kept - exchanged)
        scores = self.rank(grow).masked_fill(alive & ~survivors, torch.finfo(scores.dtype).min)
        scores.masked_fill_(survivors, math.inf)
        protected, allowed = self.find_bounds(scores, torch.ones_like(alive), kept)
        needed = sum_shards(count_pieces(survivors | protected), self.shard)
        scores.masked_fill_(protected & (needed.to(protected.device) <= kept), math.inf)
        return self.choose_local(scores.masked_fill_(~allowed & ~survivors, -math.inf), kept)

    def foresee_exchange(self, alive: Tensor, atoms: Tensor) -> Iterator[Counted]:
        """Yield numbers that hold after regrowth; then they are to be taken.

        Args:
            alive: Which local atoms are kept before.
            atoms: Which local atoms are kept after.
        """
        members = zip(self.spread(alive), self.spread(atoms), strict=True)
        for (member, before), (_, after) in members:
            changed = count_pieces(before, after, join=torch.ne)
            counts = torch.stack([count_pieces(after), changed])
            yield counts, member.shard, member.note_changed

    def regrow(self, atoms: Tensor) -> None:
        """Take over a bool mask of the local atoms; pruned weights that it keeps grow from 0."""
        for member, weights in self.spread(atoms):
            member.regrow_to(weights)

    def choose_local(self, ranked: Tensor, keep: int) -> Tensor:
        """Return which local atoms are among the ``keep`` best of all, as the pattern ranks them.

        Args:
            ranked: A score for each local atom; +inf where it must stay, -inf where it must not.
            keep: Number of atoms to keep, also of other processes.
        """
        if self.shard is None:
            return self.pattern(ranked, keep)
        here = count_best_local(self.pattern.to_ranking(ranked), keep, self.shard)
        return self.pattern(ranked, here) if ranked.numel() else torch.zeros_like(ranked).bool()

    def find_bounds(self, scores: Tensor, alive: Tensor, due: int) -> tuple[Tensor, Tensor]:
        """Return which local atoms the pattern protects, and which atoms it allows.

        Args:
            scores: A score for each local atom.
            alive: Bool mask of the local atoms that are not pruned.
            due: Number of atoms that may be kept, also of other processes.
        """
        return self.pattern.bounds(scores, alive, self.share_due(due, alive))

    def share_due(self, due: int, local: Tensor) -> float:
        """Return the share of the local atoms in a number of atoms, in proportion."""
        return due if self.shard is None else due * local.numel() / self.total


def count_atoms(groups: Iterable[Group]) -> None:
    """Count the atoms of all groups whose masks have changed, so that the host waits once."""
    tally = Tally()
    for group in groups:
        group.ask(tally)
    tally.read()
