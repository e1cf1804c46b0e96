"""Choose exactly the k best scores of a tensor, of several tensors, or of each row."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor

from lightning_prune.tensors.batches import mark_best, mark_rows
from lightning_prune.tensors.fusing import can_fuse
from lightning_prune.tensors.lamp import LampPart, find_lamp_thresholds
from lightning_prune.tensors.parts import SIZES, Part, Sizes, Threshold, flatten_wide, slice_pieces
from lightning_prune.tensors.readers import make_row_table
from lightning_prune.tensors.samples import Fits, find_last
from lightning_prune.tensors.shards import Shard
from lightning_prune.tensors.thresholds import cut_pieces, divide_local, find_thresholds

_COMPARED = 16  # the most members of a group that are compared in pairs instead of sorted


@dataclass(frozen=True, kw_only=True)
class Share:
    """The share of a tensor in a number to keep.

    Args:
        keep: Number to keep of this tensor.
        threshold: The threshold that divides the scores at ``keep``; None if unknown.
    """

    keep: int
    threshold: Threshold | None = None


def compute_keep(atoms: int, sparsity: float) -> int:
    """Return the number of ``atoms`` to keep at ``sparsity``, by the only rounding rule.

    The rule is half to even, in double precision: ``round(atoms * (1 - sparsity))``.

    Examples:
        >>> [compute_keep(n, 0.5) for n in (1, 2, 3)]
        [0, 1, 2]
    """
    return round(atoms * (1 - sparsity))


def choose_best(scores: Tensor, keep: int, sizes: Sizes = SIZES) -> Tensor:
    """Return the bool mask of the ``keep`` highest scores.

    Of equal scores the lower index comes first.

    Args:
        scores: Scores of any shape and floating dtype, infinities allowed, without NaN.
        keep: Number of scores to keep, in ``[0, scores.numel()]``.
        sizes: Sizes of the pieces of the search.

    Examples:
        >>> choose_best(torch.tensor([1.0, 2.0, 1.0]), 2).tolist()
        [True, True, False]
    """
    if keep <= 0:
        return torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    if keep >= scores.numel():
        return torch.ones(scores.shape, dtype=torch.bool, device=scores.device)
    if keep == 1:
        best = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
        first = scores.argmax().view(1)  # of equal scores; a number as an index would be read
        return best.scatter_(0, first, True).view(scores.shape)
    part = Part.of(scores, sizes=sizes)
    if part.is_batched:
        return mark_best([part], [keep], sizes=sizes)[0].view(scores.shape)
    value, ties = divide_local(part, keep, sizes=sizes)
    return torch.cat(list(cut_pieces(part.read(1), value, ties, sizes))).view(scores.shape)


def choose_best_of_rows(scores: Tensor, keep: Tensor) -> Tensor:
    """Return the bool mask of the ``keep[i]`` highest scores of each row ``i``.

    Of equal scores the lower index comes first, as in `choose_best`.

    Args:
        scores: ``(rows, columns)``.
        keep: Number to keep in each row, ``(rows,)``.

    Examples:
        >>> scores = torch.tensor([[1.0, 3.0], [2.0, 2.0]])
        >>> choose_best_of_rows(scores, torch.tensor([1, 1])).tolist()
        [[False, True], [True, False]]
    """
    best = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
    ranks = torch.arange(scores.shape[1], device=scores.device)
    for rows in slice_pieces(scores):  # an order takes eight bytes a score
        if (table := make_row_table(scores[rows])) is not None:
            best[rows] = mark_rows(table, keep[rows].to(torch.int64)).view(best[rows].shape)
            continue
        wide = flatten_wide(scores[rows]).view(scores[rows].shape)
        order = wide.argsort(dim=1, descending=True, stable=True)
        best[rows].scatter_(1, order, ranks < keep[rows, None])
    return best


def choose_best_of_groups(groups: Tensor, keep: int) -> Tensor:
    """Return the bool mask of the ``keep`` highest scores of each group.

    Of equal scores the lower index comes first, as in `choose_best`. Small groups are not sorted:
    the rank of a score is the number of scores in the group that come before it.

    Args:
        groups: ``(groups, members)``.
        keep: Number to keep in each group.

    Examples:
        >>> choose_best_of_groups(torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]), 1).tolist()
        [[False, True, False], [True, False, False]]
    """
    members = groups.shape[1]
    if members > _COMPARED:
        return choose_best_of_rows(groups, torch.full_like(groups[:, 0], keep, dtype=torch.int64))
    if can_fuse(groups):
        from lightning_prune.tensors import fused_groups  # it imports Triton, which takes long

        return fused_groups.choose_best_of_groups(groups, keep)
    columns = groups.unbind(1)
    # At first every later member counts as better; a win of the earlier one corrects both ranks.
    ranks = [
        torch.full_like(column, members - 1 - place, dtype=torch.uint8)
        for place, column in enumerate(columns)
    ]
    for first, second in combinations(range(members), 2):
        wins = (columns[first] >= columns[second]).view(torch.uint8)
        ranks[first] -= wins
        ranks[second] += wins
    return torch.stack([rank < keep for rank in ranks], dim=1)


def choose_best_evenly(scores: Tensor, keep: int) -> Tensor:
    """Return the bool mask of the ``keep`` highest scores, spread evenly over the rows.

    Scores of +inf are kept and those of -inf are not. Between these bounds each row keeps the same
    number; if the rows do not divide ``keep``, the earlier rows keep 1 more.

    Args:
        scores: Scores of two or more dimensions; a row is an index of the first one.
        keep: Number of scores to keep.

    Examples:
        >>> choose_best_evenly(torch.tensor([[1.0, 3.0], [2.0, 2.0]]), 3).tolist()
        [[True, True], [True, False]]
    """
    rows = scores.flatten(1)
    pieces = list(slice_pieces(rows))
    floors = torch.cat([(rows[piece] == math.inf).sum(1) for piece in pieces])
    caps = torch.cat([(rows[piece] > -math.inf).sum(1) for piece in pieces])
    quotas = _divide_evenly(keep, floors, caps, rows.shape[1])
    return choose_best_of_rows(rows, quotas).view(scores.shape)


def rank_rows(scores: Tensor) -> Tensor:
    """Return minus the number of better scores in the row, by which `choose_best_evenly` chooses.

    Infinite scores stay as they are. So the highest values of all rows together, of equal values
    those of the earlier rows, are those that `choose_best_evenly` keeps. Parts of the rows in
    several processes can be ranked by these values.

    Args:
        scores: Scores of two or more dimensions; a row is an index of the first one.

    Examples:
        >>> rank_rows(torch.tensor([[1.0, 3.0, math.inf], [2.0, 2.0, -math.inf]])).tolist()
        [[-2.0, -1.0, inf], [0.0, -1.0, -inf]]
    """
    rows = scores.flatten(1)
    order = flatten_wide(rows).view(rows.shape).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(rows.shape[1], device=rows.device).expand_as(order)
    ranks = torch.zeros_like(order).scatter_(1, order, places)
    return torch.where(rows.isinf(), rows, (-ranks).to(rows.dtype)).view(scores.shape)


def choose_best_of_slices(scores: Tensor, axes: Sequence[int]) -> Tensor:
    """Return the bool mask of the highest score at each index of some axes; -inf is never chosen.

    Of equal scores the lower index comes first.

    Args:
        scores: Scores of any shape and floating dtype.
        axes: The axes; with none, the highest score of all is chosen.

    Examples:
        >>> scores = torch.tensor([[1.0, 3.0], [2.0, 2.0]])
        >>> choose_best_of_slices(scores, [1]).tolist()
        [[False, True], [True, False]]
        >>> choose_best_of_slices(scores, []).tolist()
        [[False, True], [False, False]]
    """
    first = list(range(len(axes)))
    moved = scores.movedim(list(axes), first)
    rows = moved.flatten(0, len(axes) - 1) if axes else moved[None]
    rows = rows.reshape(len(rows), math.prod(moved.shape[len(axes) :]))
    best = torch.zeros_like(rows, dtype=torch.bool)
    best.scatter_(1, rows.argmax(dim=1, keepdim=True), True)
    return best.view(moved.shape).movedim(first, list(axes)) & (scores > -math.inf)


def share_out(pool: Sequence[Part], keep: int, sizes: Sizes = SIZES) -> list[Share]:
    """Divide the ``keep`` highest values of all tensors together among the tensors.

    Of equal values the earlier tensor comes first. A tensor that would keep less than its least
    number keeps the least number, and the other tensors divide the rest.

    Args:
        pool: The tensors.
        keep: Number to keep of all tensors, from the sum of least numbers to the sum of sizes.
        sizes: Sizes of the pieces of the search.

    Examples:
        >>> pool = [Part.of(torch.tensor([1.0, 2.0])), Part.of(torch.tensor([2.0, 0.0, 2.0]))]
        >>> [share.keep for share in share_out(pool, 2)]
        [1, 1]
    """

    def fits(counts: Sequence[int]) -> bool:
        return sum(counts) <= keep

    free = [replace(part, least=0) for part in pool]
    shares = _share_out(free, fits, sizes, total=keep)
    if all(share.keep >= part.least for part, share in zip(pool, shares, strict=True)):
        return shares
    return share_out_most(pool, fits, sizes)


def share_out_most(pool: Sequence[Part], fits: Fits, sizes: Sizes = SIZES) -> list[Share]:
    """Divide as many of the highest values of all tensors among the tensors as fit.

    The order of the values is that of `share_out`.

    Args:
        pool: The tensors.
        fits: Whether numbers to keep fit. It must be true of the least numbers.
        sizes: Sizes of the pieces of the search.

    Examples:
        >>> pool = [Part.of(torch.tensor([1.0, 2.0])), Part.of(torch.tensor([2.0, 0.0, 2.0]))]
        >>> [share.keep for share in share_out_most(pool, lambda keep: 3 * keep[0] + keep[1] <= 5)]
        [1, 2]
    """
    return _share_out(pool, fits, sizes, total=None)


def _share_out(pool: Sequence[Part], fits: Fits, sizes: Sizes, *, total: int | None) -> list[Share]:
    """Divide the highest values that fit; ``total`` is that of `find_thresholds`."""
    least = [part.least for part in pool]

    def raise_to_least(counts: Sequence[int]) -> Sequence[int]:
        return list(map(max, least, counts)) if any(least) else counts

    if fits([part.size for part in pool]):
        return [Share(keep=part.size) for part in pool]
    thresholds = find_thresholds(
        pool, lambda counts: fits(raise_to_least(counts)), sizes, total=total
    )
    return _share_ties(thresholds, raise_to_least, fits)


def share_out_lamp(pool: Sequence[LampPart], fits: Fits) -> list[Share]:
    """Divide as many weights as fit among tensors, those of the highest LAMP scores.

    Of equal LAMP scores the earlier tensor comes first.

    Args:
        pool: The tensors.
        fits: Whether numbers to keep fit: as `find_lamp_thresholds` needs.
    """
    least = [each.part.least for each in pool]

    def raise_to_least(counts: Sequence[int]) -> Sequence[int]:
        return list(map(max, least, counts))

    thresholds = find_lamp_thresholds(pool, lambda counts: fits(raise_to_least(counts)))
    shares = _share_ties(thresholds, raise_to_least, fits)
    return [Share(keep=share.keep) for share in shares]  # a LAMP score is no threshold of scores


def _share_ties(
    thresholds: Sequence[Threshold],
    raise_to_least: Callable[[Sequence[int]], Sequence[int]],
    fits: Fits,
) -> list[Share]:
    """Return the shares of all values above thresholds, and of as many equal values as fit."""
    numbers = range(1, sum(threshold.at for threshold in thresholds) + 1)
    ties = find_last(numbers, lambda n: fits(raise_to_least(_take_ties(thresholds, n))))
    keeps = raise_to_least(_take_ties(thresholds, ties))
    return [
        Share(keep=keep, threshold=threshold if threshold.divides_at(keep) else None)
        for keep, threshold in zip(keeps, thresholds, strict=True)
    ]


def _take_ties(thresholds: Sequence[Threshold], ties: int) -> list[int]:
    """Count in each tensor the values above, and the first equal values of all tensors."""
    counts = []
    for threshold in thresholds:
        taken = min(ties, threshold.at)
        counts.append(threshold.above + taken)
        ties -= taken
    return counts


def count_best_local(scores: Tensor, keep: int, shard: Shard | None) -> int:
    """Return how many of the ``keep`` highest scores of a tensor lie in the local part.

    They are the highest scores of the local part, also with ties: the local part has the order of
    the whole tensor.

    Args:
        scores: The scores of the local part.
        keep: Number to keep of the whole tensor.
        shard: Place of the local part in the tensor; None for a whole tensor.
    """
    if shard is None or keep <= 0:
        return keep
    part = Part.of(scores, shard)
    if keep >= part.size:
        return scores.numel()
    value, ties = divide_local(part, keep)
    return sum(int(mask.count_nonzero()) for mask in cut_pieces(part.read(1), value, ties))


def _divide_evenly(total: int, floors: Tensor, caps: Tensor, most: int) -> Tensor:
    """Divide ``total`` over rows as evenly as floors and caps allow, the earlier rows first.

    The host does not wait: the sum at each level is known from how many rows rise there.
    """
    ones = torch.ones_like(floors)
    rising = torch.zeros(most + 1, dtype=floors.dtype, device=floors.device)
    rising.scatter_add_(0, floors, ones).scatter_add_(0, caps, -ones)
    sums = floors.sum() + rising.cumsum(0).cumsum(0)  # at the levels from 1 on
    level = (sums <= total).sum()  # the highest level whose sum does not exceed the total
    quotas = level.expand_as(caps).clamp(floors, caps)
    may_rise = (quotas == level) & (quotas < caps)
    return quotas + (may_rise & (may_rise.cumsum(0) <= total - quotas.sum()))
