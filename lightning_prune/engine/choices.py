"""Choices: which atoms of a group stay, as a mask, as a threshold, or as a number to keep."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import starmap
from typing import TypeVar

import torch
from torch import Tensor

from lightning_prune.engine.scores import TensorScores
from lightning_prune.tensors.batches import mark_best
from lightning_prune.tensors.bits import pack_mask, unpack_mask
from lightning_prune.tensors.parts import SIZES, Part, reads_at_once
from lightning_prune.tensors.ranking import Share
from lightning_prune.tensors.thresholds import divide_local

_TOGETHER = 8  # held scores are ranked together, up to the size of so many chunks

Owner = TypeVar("Owner")


@dataclass(frozen=True, kw_only=True, eq=False)
class Cut:
    """The best atoms of one tensor as a threshold, which is applied in pieces.

    Args:
        scores: The scores that are cut.
        value: The threshold; higher scores are kept.
        ties: Number of local scores equal to it that are kept, the first ones; None for all.
    """

    scores: TensorScores
    value: float
    ties: int | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Quota:
    """The best atoms of one tensor as a number, before the threshold is known.

    Args:
        part: The scores to rank.
        share: The number, and the threshold if it is known.
        shape: Shape of the local atoms.
        is_held: Whether the scores take memory until the threshold is known.
        cut: Returns the choice at a threshold, for a number of equal local scores (None for all).
    """

    part: Part
    share: Share
    shape: torch.Size
    is_held: bool
    cut: "Callable[[float, int | None], Settled]"

    def settle(self) -> "Settled":
        """Find the threshold for this tensor alone."""
        if self.share.keep <= 0:
            return self.cut(math.inf, None)
        return self.cut(*divide_local(self.part, self.share.keep, self.share.threshold))


Settled = Tensor | Cut
"""A bool mask of the local atoms, or a threshold."""

Choice = Settled | Quota


@dataclass(frozen=True, kw_only=True, eq=False)
class Packed:
    """A bool mask of the local atoms that waits in one bit an atom, on a CPU.

    Args:
        bits: The packed mask.
        shape: Shape of the local atoms.
    """

    bits: Tensor
    shape: torch.Size


Waiting = Settled | Packed
"""A settled choice until it is carried out; `unpack` returns the choice."""


def unpack(choice: Waiting) -> Settled:
    """Return a choice as it was before it waited."""
    return unpack_mask(choice.bits, choice.shape) if isinstance(choice, Packed) else choice


def settle(choices: Iterable[tuple[Owner, Choice]]) -> list[tuple[Owner, Waiting]]:
    """Find the thresholds of all quotas: on accelerators in few searches, without a wait.

    Scores that are held are to be let go: on a CPU each mask is made and packed before the next
    choice is made. On an accelerator quotas are settled together, a limited number of scores at
    once. Quotas whose scores take no memory are settled in the end.

    Args:
        choices: The choices, each with an owner, made in turn.

    Returns:
        The owners with the settled choices, in the same order.
    """
    found: list[tuple[Owner, Choice | Packed]] = []
    held: dict[int, Quota] = {}
    scores = 0
    for owner, choice in starmap(_pack, choices):  # which lets each mask go before the next
        if isinstance(choice, Quota) and choice.is_held:
            held[len(found)] = choice
            scores += choice.part.size
        found.append((owner, choice))
        if scores >= _TOGETHER * SIZES.launch:
            _settle_at(found, held)
            scores = 0
    _settle_at(found, {i: each for i, (_, each) in enumerate(found) if isinstance(each, Quota)})
    return [(owner, choice) for owner, choice in found if not isinstance(choice, Quota)]


def _settle_at(found: list[tuple[Owner, Choice | Packed]], quotas: dict[int, Quota]) -> None:
    """Put the settled choices in the places of quotas, and let the quotas go."""
    for place, settled in zip(quotas, _settle_all(list(quotas.values())), strict=True):
        found[place] = found[place][0], settled
    quotas.clear()


def _pack(owner: Owner, choice: Choice) -> tuple[Owner, Choice | Packed]:
    """Settle a quota with held scores unless others are settled with it, and pack masks."""
    if isinstance(choice, Quota) and choice.is_held and not choice.part.is_batched:
        choice = choice.settle()
    if isinstance(choice, Tensor) and reads_at_once(choice.device):
        return owner, Packed(bits=pack_mask(choice), shape=choice.shape)
    return owner, choice


def _settle_all(quotas: Sequence[Quota]) -> list[Settled]:
    """Return the settled choices, in the same order."""
    batch = [quota for quota in quotas if quota.part.is_batched]
    masks: Iterator[Tensor] = iter(())
    if batch:
        masks = iter(
            mark_best(
                [quota.part for quota in batch],
                [quota.share.keep for quota in batch],
                [quota.share.threshold for quota in batch],
            )
        )
    return [
        next(masks).view(quota.shape) if quota.part.is_batched else quota.settle()
        for quota in quotas
    ]
