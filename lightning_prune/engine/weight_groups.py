"""Groups of single weights, ranked in pieces, also if only a shard of the tensor is local."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from lightning_prune.engine.choices import Cut, Quota, Settled
from lightning_prune.engine.extents import Extent
from lightning_prune.engine.groups import Scores
from lightning_prune.engine.scores import TensorScores
from lightning_prune.engine.tensor_groups import TensorGroup
from lightning_prune.recipe.atoms import Atoms
from lightning_prune.recipe.tensor import PrunedTensor
from lightning_prune.tensors.parts import Part, Piece
from lightning_prune.tensors.ranking import Share, choose_best
from lightning_prune.tensors.shards import Shard
from lightning_prune.tensors.thresholds import cut_pieces


@dataclass(kw_only=True, eq=False)
class WeightGroup(TensorGroup):
    """The weights of one tensor, or of its local part, for a pattern that ranks freely."""

    _threshold: float | None = field(init=False, default=None)  # of the last choice

    @property
    def shard(self) -> Shard | None:
        """Which part of the weights is local, output axis first; None if all are."""
        member = self.members[0]
        return member.shard and member.shard.transpose(0, member.output_axis)

    @property
    def total(self) -> int:
        """Number of weights, also of other processes."""
        return self.members[0].total

    @property
    def atoms_kept(self) -> int:
        """Number of weights that are not pruned, also of other processes."""
        return self.members[0].kept

    def extents(self) -> Iterator[Extent]:
        """Yield the tensor, of which a weight is any entry."""
        yield Extent(parameter=self.name, axis=None, covered=self.total, width=1)

    @property
    def rows(self) -> int:
        """One if the tensor must keep a weight, as a row of its own; else 0."""
        return int(self.members[0].row_axes is not None)

    def count_lost_rows(self) -> int:
        """Return one if the tensor must keep a weight, and keeps none; else 0."""
        return self.rows - min(self.rows, self.atoms_kept)

    def is_satisfied(self, due: int) -> bool:
        """Whether the pattern asks for no further pruning: it never does."""
        return True

    def round_keep(self, due: int) -> int:
        """Return the number of weights that are kept where an allocation gives ``due``."""
        return due

    def atoms(self, scores: Scores | None, target: float) -> Atoms:
        """Return the weights with their bounds: at least one stays, and pruned weights stay pruned.

        Args:
            scores: The scores of the tensor; None for a plan that needs none.
            target: The sparsity that is due now, in [0, 1].
        """
        member = self.members[0]
        of_member = None if scores is None else scores[self.name]
        guess = self._threshold if self.may_return else None
        return WeightAtoms(member, of_member, self.shard, self.floor, guess)

    def choose(self, atoms: Atoms, share: Share) -> Quota:
        """Choose the weights that stay, by their number; `settle` finds the threshold.

        Args:
            atoms: The result of `atoms`.
            share: How many stay, between floor and cap.
        """
        assert isinstance(atoms, WeightAtoms)
        return atoms.quota(share, self._cut)

    def alive_after(self, choice: Settled) -> Tensor:
        """Return which local weights are alive once a choice is carried out."""
        kept = self._cut_whole(choice) if isinstance(choice, Cut) else choice
        return kept & self.alive()

    def spread(self, atoms: Tensor) -> Iterator[tuple[PrunedTensor, Tensor]]:
        """Yield the tensor with a bool mask of the local weights."""
        member = self.members[0]
        yield member, member.output_first(atoms)

    def intersect(self, choice: Settled) -> dict[PrunedTensor, Tensor]:
        """Prune the weights that a choice, or a bool mask, leaves out."""
        member = self.members[0]
        if isinstance(choice, Tensor):
            member.mask.intersect(member.output_first(choice))
            return {}
        mask, counts = member.mask.transpose(0, member.output_axis), []
        for rows, kept in self._cut_pieces(choice):
            piece = mask[rows]
            piece.intersect(kept.view(piece.shape))
            counts.append(piece.count())  # while the piece is in the cache
        return {member: torch.stack(counts).sum()}

    def renew(self, choice: Settled) -> dict[PrunedTensor, Tensor]:
        """Keep the weights of a choice, and prune all others; weights may return."""
        if isinstance(choice, Tensor):
            return super().renew(choice)
        member = self.members[0]
        mask, counts = member.mask.transpose(0, member.output_axis), []
        for rows, kept in self._cut_pieces(choice):
            piece, kept = mask[rows], kept.view(mask[rows].shape)
            counts.append(piece.compare(kept))
            piece.set(kept)
        return {member: torch.stack(counts).sum(0)}

    def _cut(self, scores: TensorScores, value: float, ties: int | None) -> Settled:
        """Return the choice at a threshold.

        Scores that are read in place are cut later, in pieces. Those that are held are cut at once,
        so that they can be let go.
        """
        self._threshold = value if math.isfinite(value) else None
        cut = Cut(scores=scores, value=value, ties=ties)
        return self._cut_whole(cut) if scores.is_held else cut

    def _cut_whole(self, cut: Cut) -> Tensor:
        """Return the bool mask of the local weights, output axis first."""
        member = self.members[0]
        shape = member.mask.transpose(0, member.output_axis).shape
        return torch.cat([kept for _, kept in self._cut_pieces(cut)]).view(shape)

    def _cut_pieces(self, cut: Cut) -> Iterator[tuple[slice, Tensor]]:
        """Yield rows, and the flat bool mask of their kept weights.

        Where all ties are kept, pruned weights need not be told from them: they stay pruned.
        """
        member = self.members[0]
        pieces = _read_pieces(cut.scores, member, is_dense=cut.ties is None)
        masks = cut_pieces(pieces, cut.value, cut.ties)
        yield from zip(cut.scores.slices(), masks, strict=True)


class WeightAtoms(Atoms):
    """The weights of a tensor, whose scores are read in pieces.

    Args:
        member: The tensor.
        scores: Its scores; None for equal scores.
        shard: Which part of the tensor is local, output axis first.
        floor: Least number of weights that stay, 0 or 1.
        guess: The threshold of the last choice, if the next is near; None for no guess.
    """

    def __init__(
        self,
        member: PrunedTensor,
        scores: TensorScores | None,
        shard: Shard | None,
        floor: int,
        guess: float | None,
    ) -> None:
        self.shape, self.shard, self.total = member.shape, shard, member.total
        self.cap = self.total if member.may_return else member.kept
        self.floor = min(floor, self.cap)
        self._member, self._scores, self._guess = member, scores, guess
        self._mask = member.mask.transpose(0, member.output_axis)

    @property
    def scores(self) -> Tensor:
        """One finite score a weight."""
        if self._scores is None:
            return torch.zeros(self._mask.shape, device=self._mask.device)
        return self._scores.whole

    @property
    def protected(self) -> Tensor:
        """The best weight, unless all may go."""
        if self._member.may_return:
            return choose_best(self.scores, self.floor)
        ranked = self._mask.flatten().lower(self.scores.reshape(-1))
        return choose_best(ranked.view(self._mask.shape), self.floor)

    @property
    def protected_part(self) -> None:
        """None: the best weight needs no protection, as `part` says."""

    @property
    def allowed(self) -> Tensor:
        """The weights that are not pruned, or may return."""
        return torch.ones_like(self._mask.kept) if self._member.may_return else self._mask.kept

    @property
    def part(self) -> Part:
        """The scores to rank, with pruned weights at -inf.

        The best needs no protection: it is among the kept ones unless none is kept.
        """
        scores = self._scores
        assert scores is not None
        return Part(
            read=lambda stride: _read_pieces(scores, self._member, stride),
            size=self.total,
            least=self.floor,
            shard=self.shard,
            guess=self._guess,
            dtype=scores.dtype,
            device=self._mask.device,
            read_raw=None if self._mask.pruned is None else self._read_raw,
        )

    def _read_raw(self) -> Iterator[Piece]:
        """Yield the values from which scores are made, and where weights are pruned."""
        assert self._scores is not None
        pieces = self._scores.pieces()
        if _is_dense(self._member):
            yield from pieces
            return
        for rows, piece in zip(self._scores.slices(), pieces, strict=True):
            yield piece._replace(pruned=self._mask[rows].pruned)

    def quota(
        self, share: Share, cut: Callable[[TensorScores, float, int | None], Settled]
    ) -> Quota:
        """Return a share as a choice; ``cut`` makes a mask or a `Cut` of a threshold."""
        assert self._scores is not None
        return Quota(
            part=self.part,
            share=share,
            shape=self._mask.shape,
            is_held=self._scores.is_held,
            cut=partial(cut, self._scores),
        )


def _read_pieces(
    scores: TensorScores, member: PrunedTensor, stride: int = 1, *, is_dense: bool = False
) -> Iterator[Tensor]:
    """Yield the scores, flat, with -inf where a weight is pruned, unless all count as dense."""
    is_dense |= _is_dense(member)
    mask = member.mask.transpose(0, member.output_axis)
    for rows in scores.slices():
        piece = scores.read(rows, stride)
        yield piece if is_dense else mask[rows].flatten(stride).lower(piece)


def _is_dense(member: PrunedTensor) -> bool:
    """Whether all weights compete."""
    return member.may_return or member.kept == member.total
