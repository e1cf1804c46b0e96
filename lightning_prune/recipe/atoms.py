"""The atoms of a tensor or group, with their scores and bounds, as an allocation reads them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from lightning_prune.tensors.parts import Part
from lightning_prune.tensors.shards import Shard, sum_shards


class Atoms(ABC):
    """The atoms of a tensor or group, for an allocation to read.

    Reading scores or bounds may compute them anew, so that the scores of a whole model need not
    exist at once. Read them once, and release them before you read the next tensor.

    Attributes:
        shape: Shape of the tensor as ``(output, input, ...)``.
        shard: Place of these atoms in a sharded tensor; None if they are the whole tensor.
        total: Number of atoms of the whole tensor, including pruned atoms.
        floor: Least number that the whole tensor can keep.
        cap: Largest number that the whole tensor can keep.
        saving: The cost that each atom saves if it is pruned, at least 0, in the unit of
            `Allocation.per`; the engine sets it.
    """

    shape: tuple[int, ...]
    shard: Shard | None
    total: int
    floor: int
    cap: int
    saving: float = 1.0

    @property
    @abstractmethod
    def scores(self) -> Tensor:
        """A finite score for each atom; higher scores are kept."""

    @property
    @abstractmethod
    def protected(self) -> Tensor:
        """Bool mask of the atoms that are kept at any score, shaped as the scores."""

    @property
    @abstractmethod
    def allowed(self) -> Tensor:
        """Bool mask of the atoms that may be kept: not pruned, and allowed by the pattern."""

    @property
    def protected_part(self) -> Part | None:
        """The scores of the atoms at +inf in `part`, and -inf elsewhere; None without any."""
        if not self.floor:
            return None
        return Part.of(self.scores, self.shard, pruned=~self.protected)

    def rank(self) -> Tensor:
        """Return the scores with protected atoms at +inf and forbidden atoms at -inf."""
        scores = self.scores if self.scores.is_floating_point() else self.scores.float()
        ranked = scores.masked_fill(self.protected, math.inf)
        return ranked if self.cap == self.total else ranked.masked_fill_(~self.allowed, -math.inf)

    def rescore(self, scores: Tensor) -> "Atoms":
        """Return the same atoms with other scores, for example scores that tensors can compare."""
        atoms = TensorAtoms(
            shape=self.shape,
            scores=scores,
            protected=self.protected,
            allowed=self.allowed,
            shard=self.shard,
        )
        atoms.saving = self.saving
        return atoms

    @property
    def part(self) -> Part:
        """The scores to rank, with the bounds as infinite scores."""
        return Part.of(self.rank(), self.shard)


class TensorAtoms(Atoms):
    """Atoms of a whole tensor, or of the local part, with scores and bounds in memory.

    The atoms of a shard are made on all processes together, because they are counted there.

    Args:
        shape: Shape of the tensor as ``(output, input, ...)``.
        scores: A finite score for each atom; higher scores are kept.
        protected: Bool mask of the atoms that are kept at any score, shaped as ``scores``.
        allowed: Bool mask of the atoms that may be kept, shaped as ``scores``.
        shard: Place of these atoms in a sharded tensor; None if they are the whole tensor.
        counts: Numbers of protected and of allowed atoms; None to count them.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...],
        scores: Tensor,
        protected: Tensor,
        allowed: Tensor,
        shard: Shard | None = None,
        counts: tuple[int, int] | None = None,
    ) -> None:
        self.shape, self.shard = shape, shard
        self.total = math.prod(shard.shape) if shard else scores.numel()
        self.floor, self.cap = counts or count_bounds(protected, allowed, shard)
        self._scores, self._protected, self._allowed = scores, protected, allowed

    @property
    def scores(self) -> Tensor:
        """A finite score for each atom."""
        return self._scores

    @property
    def protected(self) -> Tensor:
        """Bool mask of the atoms that are kept at any score."""
        return self._protected

    @property
    def allowed(self) -> Tensor:
        """Bool mask of the atoms that may be kept."""
        return self._allowed


class PlannedAtoms(Atoms):
    """Atoms of a tensor that a plan counts; the masks are made when they are first read.

    Args:
        shape: Shape of the tensor as ``(output, input, ...)``.
        shard: Place of the local atoms in a sharded tensor; None if they are the whole tensor.
        total: Number of atoms of the whole tensor.
        counts: Numbers of protected and of allowed atoms.
        read: Returns the same atoms with scores and masks.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...],
        shard: Shard | None,
        total: int,
        counts: tuple[int, int],
        read: Callable[[], Atoms],
    ) -> None:
        self.shape, self.shard, self.total = shape, shard, total
        self.floor, self.cap = counts
        self._read = read

    @property
    def scores(self) -> Tensor:
        """Equal scores."""
        return self._atoms.scores

    @property
    def protected(self) -> Tensor:
        """Bool mask of the atoms that are kept at any score."""
        return self._atoms.protected

    @property
    def allowed(self) -> Tensor:
        """Bool mask of the atoms that may be kept."""
        return self._atoms.allowed

    @cached_property
    def _atoms(self) -> Atoms:
        return self._read()


def count_bounds(protected: Tensor, allowed: Tensor, shard: Shard | None) -> tuple[int, int]:
    """Return the numbers of protected and of allowed atoms, with a single wait for both.

    Args:
        protected: Bool mask of the local atoms that are kept at any score.
        allowed: Bool mask of the local atoms that may be kept.
        shard: Place of these atoms in a sharded tensor, whose processes count together.
    """
    counts = torch.stack([protected.count_nonzero(), allowed.count_nonzero()])
    held, may_stay = sum_shards(counts, shard).tolist()
    return held, may_stay
