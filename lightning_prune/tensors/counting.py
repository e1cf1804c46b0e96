"""Counts in many tensors: on a GPU with Triton in a launch for all, else one after the other."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_prune.tensors.chunks import count_not_finite as count_not_finite_in_chunks
from lightning_prune.tensors.fusing import fuses
from lightning_prune.tensors.masks import Mask
from lightning_prune.tensors.parts import Piece
from lightning_prune.tensors.readers import is_known


class Masked(NamedTuple):
    """A mask, and a tensor in the same shape.

    Attributes:
        mask: The mask.
        values: Weights, or a bool tensor that is True where a weight is kept.
    """

    mask: Mask
    values: Tensor

    @property
    def shares_launch(self) -> bool:
        """Whether one launch counts in many such pairs."""
        form, values = self.mask.pruned, self.values
        if form is None or not fuses(values.device):
            return False
        return form.device == values.device and form.stride() == values.stride()


def count_revived(pairs: Sequence[Masked]) -> list[Tensor]:
    """Return for each mask the number of pruned weights that are not 0, without a wait."""
    return _count(pairs, _count_nonzero, lambda pair: pair.mask.count_revived(pair.values))


def count_kept(pairs: Sequence[Masked]) -> list[Tensor]:
    """Return for each mask the number of weights that a bool tensor keeps, too, without a wait."""
    return _count(pairs, _count_zeros, lambda pair: pair.mask.count_with(pair.values))


def count_not_finite(parts: Sequence[Iterable[Piece]]) -> Tensor:
    """Return how many scores of all parts together are NaN or infinite, without a wait.

    Args:
        parts: The pieces of each part, on accelerators.
    """
    alike: dict[object, list[Tensor]] = {}
    rest: list[list[Piece]] = []
    for pieces in map(list, parts):
        if not all(map(is_known, pieces)):
            rest.append(pieces)
            continue
        for piece in pieces:
            kind = piece.values.device, piece.values.dtype
            alike.setdefault(kind, []).append(piece.values)
    counts = [_count_infinite(values).sum() for values in alike.values()]
    if rest:
        counts.append(count_not_finite_in_chunks(rest))
    return torch.stack([count.to(counts[0].device) for count in counts]).sum()


def _count(
    pairs: Sequence[Masked],
    together: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor],
    alone: Callable[[Masked], Tensor],
) -> list[Tensor]:
    """Return the counts in the order of the pairs, of those that can by one launch for all."""
    alike: dict[object, list[int]] = {}
    for index, pair in enumerate(pairs):
        values = pair.values
        kind = (values.device, values.element_size()) if pair.shares_launch else None
        alike.setdefault(kind, []).append(index)
    found: dict[int, Tensor] = {}
    for shared, indices in alike.items():
        chosen = [pairs[index] for index in indices]
        if shared is None:
            counts: Iterable[Tensor] = map(alone, chosen)
        else:
            forms = [pair.mask.pruned for pair in chosen if pair.mask.pruned is not None]
            counts = together([pair.values for pair in chosen], forms).unbind()
        found.update(zip(indices, counts, strict=True))
    return [found[index] for index in range(len(pairs))]


# Triton takes long to import, so the kernels are imported where they are used.


def _count_nonzero(values: Sequence[Tensor], forms: Sequence[Tensor]) -> Tensor:
    from lightning_prune.tensors.fused_counts import count_nonzero

    return count_nonzero(values, forms)


def _count_zeros(kept: Sequence[Tensor], forms: Sequence[Tensor]) -> Tensor:
    from lightning_prune.tensors.fused_counts import count_zeros

    return count_zeros(forms, kept)


def _count_infinite(values: Sequence[Tensor]) -> Tensor:
    from lightning_prune.tensors.fused_counts import count_infinite

    return count_infinite(values)
