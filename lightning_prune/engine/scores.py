"""Scores of one update: each tensor is scored once, and the scores are held or read in place."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from lightning_prune.recipe.criteria import Criterion
from lightning_prune.recipe.tensor import PrunedTensor
from lightning_prune.tensors.parts import flatten_wide, slice_pieces
from lightning_prune.tensors.precision import widen_to_single
from lightning_prune.tensors.shards import local_part, sum_shards


class TensorScores:
    """One score a weight of the local part of a tensor, with the output axis first.

    Where a criterion names a `Criterion.source`, the scores are read from it in pieces and take no
    memory. All other scores are computed once and held: in single precision, four bytes a weight.

    Args:
        tensor: The tensor.
        values: The scores, or the values that ``transform`` turns into scores.
        transform: Scores values, weight by weight; None if the values are the scores.
        origin: Who gave the scores, for errors.

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
        bad = int(sum_shards(self._count_bad(), tensor.shard))
        if bad:
            raise ValueError(
                f"need finite scores, got {bad} NaN or infinite ones of {tensor.total} from "
                f"{origin} for '{tensor.name}' at step {tensor.step}; "
                "its weights or gradients have diverged"
            )

    @classmethod
    def of(cls, tensor: PrunedTensor, criterion: Criterion) -> "TensorScores":
        """Score a tensor: read the source of the scores if there is one, or compute them."""
        origin = f"{type(criterion).__name__}.score"
        source = criterion.source(tensor, tensor.state)
        if source is None:
            return cls(tensor, criterion.score(tensor, tensor.state), origin=origin)
        return cls(tensor, source, transform=criterion.transform, origin=origin)

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

    def _score(self, values: Tensor) -> Tensor:
        return values if self._transform is None else self._transform(values)

    def _count_bad(self) -> Tensor:
        """Count the scores that are NaN or infinite."""
        bad = torch.tensor(0, device="cpu")
        for rows in self.slices() if self._transform else [slice(None)]:
            scores = self._score(self._values[rows])
            # If the sum is finite, every score is: the full count is rarely needed.
            if not math.isfinite(scores.sum().item()):
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

    def _read(self, tensor: PrunedTensor, criterion: Criterion) -> TensorScores:
        for known, scores in self._scores[tensor.name]:
            if known == criterion:
                return scores
        scores = TensorScores.of(tensor, criterion)
        self._scores[tensor.name].append((criterion, scores))
        return scores
