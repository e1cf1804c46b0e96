"""Search in many tensors at once, on an accelerator: the host waits for none of them."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_prune.tensors.blocks import send
from lightning_prune.tensors.parts import SIZES, Part, Sizes, Threshold, find_dtype
from lightning_prune.tensors.readers import Reader, make_reader
from lightning_prune.tensors.samples import Fits, find_last

if TYPE_CHECKING:
    from lightning_prune.tensors.fused_ranking import PieceTable

_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}
_KINDS: dict[torch.dtype, Any] = {
    torch.float32: (np.int32, np.float32),
    torch.float64: (np.int64, np.float64),
}

_Choose = Callable[[Tensor], Tensor]
"""The digit of each tensor, as a place from the highest digit on, ``(tensors,)``, given the number
of values above each digit, ``(tensors, digits)``."""


class _Division(NamedTuple):
    """How a value divides each of several tensors; all on the device of the first tensor.

    Attributes:
        bits: The bits of the value of each tensor, as whole numbers.
        above: Number of higher values in each tensor.
        at: Number of equal values in each tensor.
    """

    bits: Tensor
    above: Tensor
    at: Tensor


def mark_best(
    parts: Sequence[Part],
    keeps: Sequence[int],
    thresholds: Sequence[Threshold | None] | None = None,
    sizes: Sizes = SIZES,
) -> list[Tensor]:
    """Return for each tensor the flat bool mask of the best values.

    Of equal values the first are marked. The host never waits for the device: thresholds and ties
    stay there. The search needs one byte for each value, and a few chunks.

    Args:
        parts: Whole tensors on accelerators, at least one.
        keeps: Number of values to mark in each tensor, from 0 to the number of values.
        thresholds: Thresholds that are known; None for those that the search has to find.
        sizes: Sizes of the chunks.

    Examples:
        >>> scores = [torch.tensor([1.0, 2.0, 1.0]), torch.tensor([3.0, 4.0])]
        >>> [mask.tolist() for mask in mark_best([Part.of(each) for each in scores], [2, 1])]
        [[True, True, False], [False, True]]
    """
    known = [
        threshold if threshold is not None and threshold.divides_at(keep) else None
        for threshold, keep in zip(thresholds or [None] * len(parts), keeps, strict=True)
    ]
    device, dtype = parts[0].device, find_dtype(parts)
    values = send([0.0 if each is None else each.value for each in known], dtype, device)
    above = send([0 if each is None else each.above for each in known], torch.int64, device)
    wanted = send(list(keeps), torch.int64, device)
    reader = make_reader(parts, sizes)
    if unknown := [index for index, each in enumerate(known) if each is None]:
        places = send(unknown, torch.int64, device)
        are_all = len(unknown) == len(parts)
        of_unknown = reader if are_all else make_reader([parts[i] for i in unknown], sizes)
        values[places], above[places] = _find_values(of_unknown, wanted[places])
    ties = torch.where(wanted > 0, wanted - above, 0)
    return reader.mark(values, ties)


def mark_rows(table: "PieceTable", keep: Tensor) -> Tensor:
    """Return the flat bool mask of the best values of each row; of equal values the first.

    Args:
        table: The rows.
        keep: Number of values to mark in each row, ``(rows,)``.
    """
    values, above = _find_values(table, keep)
    return table.mark_all(values, torch.where(keep > 0, keep - above, 0))


def find_division(
    parts: Sequence[Part], fits: Fits, sizes: Sizes, total: int | None = None
) -> list[Threshold]:
    """Find the highest value of all tensors that does not fit, as `find_thresholds` does.

    The host waits once for each digit, for all tensors together; with a total, it waits only once.

    Args:
        parts: Whole tensors on accelerators.
        fits: Whether numbers to keep fit. It must be true of zeros, and false of all values.
        sizes: Sizes of the chunks.
        total: The largest sum that fits, if only the sum of the numbers decides.
    """

    def choose(higher: Tensor) -> Tensor:
        if total is not None:
            place = (higher.sum(0) <= total).sum() - 1
            return place.expand(len(parts))
        table = higher.cpu().numpy()
        found = find_last(range(table.shape[1]), lambda place: fits(table[:, place].tolist()))
        return torch.full((len(parts),), found, device=higher.device)

    found = _search(make_reader(parts, sizes), choose)
    integer, kind = _KINDS[find_dtype(parts)]
    bits, *numbers = torch.stack(found).tolist()  # waits once for all
    values = np.array(bits, dtype=integer).view(kind).tolist()
    return [
        Threshold(value=value, above=above, at=at)
        for value, above, at in zip(values, *numbers, strict=True)
    ]


def _find_values(reader: Reader, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Find the value at a rank in each part, and count the higher values.

    Args:
        reader: Reads the parts.
        keep: The rank in each part, ``(parts,)``. At 0 the highest value is found.
    """
    least = keep[:, None].clamp(min=1)
    found = _search(reader, lambda higher: (higher < least).sum(1) - 1)
    return found.bits.to(_INTEGERS[reader.dtype]).view(reader.dtype), found.above


def _search(reader: Reader, choose: _Choose) -> _Division:
    """Find a value of each tensor, digit by digit of the bits, from the highest on."""
    top, width = reader.dtype.itemsize * 8, reader.digit
    base = torch.full((reader.length,), -(1 << width - 1), device=reader.device)  # holds the sign
    above = at = torch.zeros_like(base)
    is_first = True
    while top:
        shift = max(top - width, 0)
        digits = 1 << top - shift
        order = _order_digits(base, digits, is_first=is_first)
        counts = reader.count_digits(base, shift, digits).gather(1, order)
        higher = above[:, None] + counts.cumsum(1) - counts
        place = choose(higher)[:, None]
        above, at = higher.gather(1, place)[:, 0], counts.gather(1, place)[:, 0]
        base = base + order.gather(1, place)[:, 0]
        top, is_first = shift, False
        base = base << min(top, width)
    return _Division(bits=base, above=above, at=at)


def _order_digits(base: Tensor, digits: int, *, is_first: bool) -> Tensor:
    """Return the digits of each tensor from the highest value to the lowest.

    The bits of a float are a sign and a magnitude: below zero, a higher digit is a lower value.

    Args:
        base: The higher digits of each tensor; negative below zero.
        digits: Number of digits.
        is_first: Whether the digit holds the sign.
    """
    rising = torch.arange(digits, device=base.device)
    if is_first:
        middle = digits // 2
        return torch.cat([rising[middle:].flip(0), rising[:middle]]).expand(len(base), -1)
    return torch.where(base[:, None] < 0, rising, rising.flip(0))
