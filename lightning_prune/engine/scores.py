"""Scores of one update: each tensor is scored once, and the scores are held or read in place."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lightning_prune.engine.tally import Tally
from lightning_prune.recipe.criteria import Criterion
from lightning_prune.recipe.tensor import PrunedTensor
from lightning_prune.tensors.counting import count_not_finite
from lightning_prune.tensors.parts import (
    Piece,
    flatten_wide,
    reads_at_once,
    slice_pieces,
    take_magnitudes,
)
from lightning_prune.tensors.precision import widen_to_single
from lightning_prune.tensors.shards import local_part, sum_shards


@dataclass(frozen=True, kw_only=True, eq=False)
class BadScores:
    """How many scores of a tensor are NaN or infinite.

    Args:
        tensor: The tensor.
        origin: Who gave the scores, for the error.
        count: The number in the local part, where the scores are.
    """

    tensor: PrunedTensor
    origin: str
    count: Tensor

    def refuse(self, number: int) -> None:
        """Raise ValueError if the number in the whole tensor is not 0."""
        if number:
            tensor = self.tensor
            raise ValueError(
                f"need finite scores, got {number} NaN or infinite ones of {tensor.total} from "
                f"{self.origin} for '{tensor.name}' at step {tensor.step}; "
                "its weights or gradients have diverged"
            )


class TensorScores:
    """One score a weight of the local part of a tensor, with the output axis first.

    Where a criterion names a `Criterion.source`, the scores are read from it in pieces and take no
    memory. All other scores are computed once and held: in single precision, four bytes a weight.

    Args:
        tensor: The tensor.
        values: The scores, or the values that ``transform`` turns into scores.
        transform: Scores values, weight by weight; None if the values are the scores.
        origin: Who gave the scores, for errors.
        defers: Whether `check` is called later, if to check now would wait for an accelerator.

    Attributes:
        is_held: Whether the scores take memory.
        is_checked: Whether no score is known to be NaN or infinite.

    Raises:
        ValueError: If a score is NaN or infinite, or scores have another shape than the tensor.
    """

    def __init__(
        self,
        tensor: PrunedTensor,
        values: Tensor,
        *,
        transform: Callable[[Tensor], Tensor] | None = None,
        origin: str = "the given scores",
        defers: bool = False,
    ) -> None:
        values = local_part(values)
        if values.shape != tensor.mask.shape:
            raise ValueError(
                f"need scores shaped as the tensor, {tuple(tensor.mask.shape)}, got "
                f"{tuple(values.shape)} from {origin} for '{tensor.name}'"
            )
        self.is_held = transform is None
        self._values = tensor.output_first(values)
        self._transform = transform
        self._tensor, self._origin = tensor, origin
        self._reads_at_once = tensor.shard is not None or reads_at_once(values.device)
        self.is_checked = not defers or self._reads_at_once
        if self.is_checked:
            self.check()

    @classmethod
    def of(
        cls, tensor: PrunedTensor, criterion: Criterion, *, defers: bool = False
    ) -> "TensorScores":
        """Score a tensor: read the source of the scores if there is one, or compute them."""
        source, transform = criterion.source(tensor, tensor.state), criterion.transform
        origin = f"{type(criterion).__name__}.score"
        if source is None:
            scores = criterion.score(tensor, tensor.state)
            return cls(tensor, scores, origin=origin, defers=defers)
        return cls(tensor, source, transform=transform, origin=origin, defers=defers)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the scores, at least single."""
        if self._transform in (None, take_magnitudes):
            return torch.promote_types(self._values.dtype, torch.float32)
        return widen_to_single(self._score(flatten_wide(self._values[:0]))).dtype

    @property
    def whole(self) -> Tensor:
        """All scores, at least in single precision."""
        return widen_to_single(self._score(self._values))

    def slices(self) -> Iterator[slice]:
        """Yield slices of rows that are small beside the tensor."""
        return slice_pieces(self._values)

    def read(self, rows: slice, stride: int = 1) -> Tensor:
        """Return the scores of a slice of rows, flat; a stride takes every n-th score."""
        return self._score(flatten_wide(self._values[rows])[::stride])

    def pieces(self) -> Iterator[Piece]:
        """Yield the values from which scores are made, for a `Part`."""
        return (Piece(self._values[rows], self._transform) for rows in self.slices())

    def count_bad(self) -> BadScores:
        """Count the scores that are NaN or infinite, without a wait for an accelerator."""
        return BadScores(tensor=self._tensor, origin=self._origin, count=self._count_bad())

    def check(self) -> None:
        """Raise ValueError if a score is NaN or infinite."""
        bad = self.count_bad()
        bad.refuse(int(sum_shards(bad.count, self._tensor.shard)))

    def _score(self, values: Tensor) -> Tensor:
        return values if self._transform is None else self._transform(values)

    def _count_bad(self) -> Tensor:
        """Count the scores that are NaN or infinite."""
        device = torch.device("cpu") if self._reads_at_once else self._values.device
        bad = torch.zeros((), dtype=torch.int64, device=device)
        for rows in self.slices() if self._transform else [slice(None)]:
            scores = self._score(self._values[rows])
            if not self._reads_at_once:
                bad += (scores * 0).count_nonzero()  # NaN and infinities do not become 0
            # If the sum is finite, every score is: the full count is rarely needed.
            elif not math.isfinite(scores.sum().item()):
                bad += scores.numel() - torch.isfinite(scores).sum().cpu()
        return bad


class ScoreBook:
    """The scores of one update. The first reading of a tensor computes them, once.

    Args:
        readings: The names of the tensors, as often as each will be released.
    """

    def __init__(self, readings: Iterable[str]) -> None:
        self._left = Counter(readings)
        self._scores: dict[str, list[tuple[Criterion, TensorScores]]] = defaultdict(list)
        self._held: list[BadScores] = []  # not yet checked, of scores that can be let go
        self._in_place: list[TensorScores] = []  # not yet checked, without memory

    def read(
        self, tensors: Iterable[PrunedTensor], criterion: Criterion
    ) -> dict[str, TensorScores]:
        """Return the scores by the name of the tensor, of those tensors that are scored."""
        return {
            tensor.name: self._read(tensor, criterion) for tensor in tensors if tensor.is_scored
        }

    def release(self, tensors: Iterable[PrunedTensor]) -> None:
        """Free the scores of tensors that the rest of the update does not read."""
        for tensor in tensors:
            self._left[tensor.name] -= 1
            if self._left[tensor.name] <= 0:
                self._scores.pop(tensor.name, None)

    def ask(self, tally: Tally) -> None:
        """Let a tally raise ValueError if scores on accelerators are NaN or infinite."""
        for bad in self._held:
            tally.add(bad.count, None, bad.refuse)
        if self._in_place:
            count = count_not_finite([scores.pieces() for scores in self._in_place])
            tally.add(count, None, partial(_check_all, self._in_place))
        self._held, self._in_place = [], []

    def _read(self, tensor: PrunedTensor, criterion: Criterion) -> TensorScores:
        for known, scores in self._scores[tensor.name]:
            if known == criterion:
                return scores
        scores = TensorScores.of(tensor, criterion, defers=True)
        if not scores.is_checked and scores.is_held:
            self._held.append(scores.count_bad())
        elif not scores.is_checked:
            self._in_place.append(scores)
        self._scores[tensor.name].append((criterion, scores))
        return scores


def _check_all(scores: Iterable[TensorScores], number: int) -> None:
    """Raise ValueError, naming the tensor, if a number of scores are NaN or infinite."""
    for of_tensor in scores if number else ():
        of_tensor.check()
