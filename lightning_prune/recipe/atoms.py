"""The atoms of a tensor or group, with their scores and bounds, as an allocation reads them."""

import math
from abc import ABC, abstractmethod

from torch import Tensor

from lightning_prune.tensors.parts import Part
from lightning_prune.tensors.shards import Shard


class Atoms(ABC):
    """The atoms of one tensor or group, as an allocation may read them.

    Scores and bounds may be made anew each time they are read, so that those of a whole model need
    not exist at once: read them once, and let them go before those of the next tensor.

    Attributes:
        shape: Shape of the tensor as ``(output, input, ...)``.
        shard: Which part of a sharded tensor these atoms are; None if they are all of it.
        total: Number of atoms of the whole tensor, pruned ones included.
        floor: Least number that the whole tensor can keep.
        cap: Largest number that the whole tensor can keep.
    """

    shape: tuple[int, ...]
    shard: Shard | None
    total: int
    floor: int
    cap: int

    @property
    @abstractmethod
    def scores(self) -> Tensor:
        """One finite score an atom; higher is kept."""

    @property
    @abstractmethod
    def protected(self) -> Tensor:
        """Which atoms are kept whatever their score; bool, shaped as the scores."""

    @property
    @abstractmethod
    def allowed(self) -> Tensor:
        """Which atoms may be kept: those that are not pruned and that the pattern can hold."""

    def rank(self) -> Tensor:
        """Return the scores with protected atoms at +inf and forbidden atoms at -inf."""
        scores = self.scores if self.scores.is_floating_point() else self.scores.float()
        return scores.masked_fill(self.protected, math.inf).masked_fill(~self.allowed, -math.inf)

    def rescore(self, scores: Tensor) -> "Atoms":
        """Return the same atoms with other scores, such as scores made comparable."""
        return TensorAtoms(
            shape=self.shape, scores=scores, protected=self.protected, allowed=self.allowed
        )

    @property
    def part(self) -> Part:
        """The scores to rank, with the bounds in them."""
        return Part.of(self.rank(), self.shard)


class TensorAtoms(Atoms):
    """Atoms of a whole tensor, with scores and bounds that are held.

    Args:
        shape: Shape of the tensor as ``(output, input, ...)``.
        scores: One finite score an atom; higher is kept.
        protected: Which atoms are kept whatever their score; bool, shaped as ``scores``.
        allowed: Which atoms may be kept; bool, shaped as ``scores``.
    """

    def __init__(
        self, *, shape: tuple[int, ...], scores: Tensor, protected: Tensor, allowed: Tensor
    ) -> None:
        self.shape, self.shard, self.total = shape, None, scores.numel()
        self.floor, self.cap = int(protected.sum()), int(allowed.sum())
        self._scores, self._protected, self._allowed = scores, protected, allowed

    @property
    def scores(self) -> Tensor:
        """One finite score an atom."""
        return self._scores

    @property
    def protected(self) -> Tensor:
        """Which atoms are kept whatever their score."""
        return self._protected

    @property
    def allowed(self) -> Tensor:
        """Which atoms may be kept."""
        return self._allowed
