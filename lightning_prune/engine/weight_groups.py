"""Single weights that live or die alone, ranked without a copy of them all."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from lightning_prune.engine.groups import Group, member_scores
from lightning_prune.recipe.atoms import Atoms
from lightning_prune.recipe.tensor import PrunedTensor, Score
from lightning_prune.tensors import ranking
from lightning_prune.tensors.masks import Mask
from lightning_prune.tensors.shards import Shard


@dataclass(kw_only=True, eq=False)
class EntryGroup(Group):
    """The entries of one tensor, or of the part of it that is here, for a pattern that is free.

    Scores are there once, as the criterion gives them; all else is done in pieces of them.
    """

    @property
    def total(self) -> int:
        """Number of entries, those of other processes included."""
        return self.members[0].total

    @property
    def atoms_kept(self) -> int:
        """Number of entries that are not pruned, those of other processes included."""
        return self.members[0].kept

    def holds(self, due: int) -> bool:
        """Whether nothing has to go for the pattern's sake: nothing ever has."""
        return True

    def atoms(self, score: Score | None, target: float) -> Atoms:
        """Return the entries with their bounds: one stays, and what is pruned does not return.

        Args:
            score: A criterion's ``score``; None for a plan that needs none.
            target: The sparsity that is due now, in [0, 1].
        """
        return EntryAtoms(self.members[0], score, self.shard)

    def keep_best(self, atoms: Atoms, keep: int) -> None:
        """Prune all but the best.

        Args:
            atoms: What `atoms` has returned.
            keep: How many stay, between floor and cap.
        """
        member = self.members[0]
        if keep == member.kept:
            return
        assert isinstance(atoms, EntryAtoms)
        for masking, kept in atoms.best(keep):
            masking.intersect(kept)
        member.changes += member.kept - keep
        member.kept = keep


class EntryAtoms(Atoms):
    """The entries of a tensor, scored anew at each reading.

    Args:
        member: The tensor.
        score: A criterion's ``score``; None for equal scores.
        shard: Which part of it is here, output axis first.
    """

    def __init__(self, member: PrunedTensor, score: Score | None, shard: Shard | None) -> None:
        self.shape, self.shard, self.total = member.shape, shard, member.total
        self.floor, self.cap = int(member.sparsity < 1 and member.kept > 0), member.kept
        self._member, self._score = member, score
        self._masking = member.masking.transposed(0, member.output_axis)
        self._are_finite = False
        self._part = ranking.Part(
            read=lambda stride: self._pieces(self.scores, stride),
            size=self.total,
            least=self.floor,
            shard=shard,
        )

    @property
    def scores(self) -> Tensor:
        """One finite score an entry."""
        if self._score is None:
            return torch.zeros(self._masking.shape, device=self._masking.device)
        scores = member_scores(self._member, self._score, check=not self._are_finite)
        self._are_finite = True
        return self._member.output_first(scores)

    @property
    def protected(self) -> Tensor:
        """The best entry, unless all may go."""
        ranked = self._masking.flat().lowered(ranking.wide(self.scores))
        return ranking.best(ranked.view(self._masking.shape), self.floor)

    @property
    def allowed(self) -> Tensor:
        """What is not pruned."""
        return self._masking.kept

    @property
    def part(self) -> ranking.Part:
        """What is ranked: the scores, with what is pruned at -inf."""
        return self._part

    def best(self, keep: int) -> Iterator[tuple[Mask, Tensor]]:
        """Yield views of the mask, one after the other, with what they keep of the best.

        The best of all needs no protection here: it is among them unless none is kept.

        Args:
            keep: How many entries of the whole tensor.
        """
        scores = self.scores
        read = partial(self._pieces, scores)
        value, ties = math.inf, None
        if keep > 0:
            value, ties = ranking.threshold_here(replace(self._part, read=read), keep)
        # Where all ties are kept, what is pruned need not be told from them: it stays pruned.
        pieces = self._pieces(scores, is_dense=True) if ties is None else read(1)
        chosen = ranking.from_threshold(pieces, value, ties)
        for rows, kept in zip(ranking.pieces_of(scores), chosen, strict=True):
            masking = self._masking[rows]
            yield masking, kept.view(masking.shape)

    def _pieces(
        self, scores: Tensor, stride: int = 1, *, is_dense: bool = False
    ) -> Iterator[Tensor]:
        """Yield the scores, flat, with -inf where an entry is pruned, unless they are dense."""
        is_dense |= self._member.kept == self._member.total
        for rows in ranking.pieces_of(scores):
            piece = ranking.wide(scores[rows])[::stride]
            yield piece if is_dense else self._masking[rows].flat(stride).lowered(piece)
