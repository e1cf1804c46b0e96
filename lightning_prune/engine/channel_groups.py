"""Channels that live or die together, in all tensors where they lie."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_prune.engine.groups import Group, member_scores
from lightning_prune.recipe.tensor import PrunedTensor, Score

if TYPE_CHECKING:
    from lightning_prune.channels.coupling import ChannelPlace


@dataclass(kw_only=True, eq=False)
class ChannelGroup(Group):
    """The output channels of a layer, with whatever goes with them elsewhere; an atom is a channel.

    A tensor can be in several groups, with its rows in one and its columns in another: it keeps
    what all of them keep.

    Args:
        slices: Where the channels lie in each member; a member can have several.
        channels: How many there are.
        width: Indices along the producers' output axis for each channel, such as the size of an
            attention head.
    """

    slices: "Sequence[ChannelPlace]"
    channels: int
    width: int
    _kept: int = field(init=False)
    _changes: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._kept = int(self.alive().sum())

    @property
    def name(self) -> str:
        """That of the first producer, with the range of indices if these are not all its channels.

        Such are the halves of a layer whose output is cut in two.
        """
        indices = (self.slices[self._first].channel_of_index >= 0).nonzero().flatten()
        if len(indices) == len(self.slices[self._first].channel_of_index):
            return self.members[0].name
        return f"{self.members[0].name}[{int(indices[0])}:{int(indices[-1]) + 1}]"

    @property
    def producers(self) -> tuple[str, ...]:
        """Names of the weights that make the channels."""
        return tuple(dict.fromkeys(its.name for its in self.slices if its.is_output))

    @property
    def size(self) -> int:
        """Number of channels, pruned ones included."""
        return self.channels

    @property
    def kept(self) -> int:
        """Number of channels that are not pruned."""
        return self._kept

    @property
    def changed(self) -> float:
        """Fraction of the channels that has changed since `forget_changes`."""
        return self._changes / self.channels

    def forget_changes(self) -> None:
        """Begin to count changes anew."""
        super().forget_changes()
        self._changes = 0

    def scores(self, score: Score) -> Tensor:
        """Return one score a channel: the mean over its entries in all members that are scored.

        Args:
            score: A criterion's ``score``.

        Raises:
            ValueError: If a score is NaN or infinite, or scores have another shape than the tensor.
        """
        device = self.members[0].masking.device
        sums = torch.zeros(self.channels, dtype=torch.float64, device=device)
        entries = torch.zeros_like(sums)
        for member, its in self._places():
            if not member.follows:
                of_index = _along(member_scores(member, score), its.axis)
                sums += self._of_channels(of_index.sum(1, dtype=torch.float64), its).sum(1)
                ones = torch.full_like(of_index[:, 0], of_index.shape[1], dtype=torch.float64)
                entries += self._of_channels(ones, its).sum(1)
        return sums / entries

    def blank_scores(self) -> Tensor:
        """Return equal scores, for plans that need none."""
        return torch.zeros(self.channels, device=self.members[0].masking.device)

    def rounded(self, due: int) -> int:
        """Return how many channels are kept where an allocation gives ``due``."""
        return self.pattern.round_kept(due, self.channels, self.width)

    def keep(self, atoms: Tensor) -> None:
        """Set the members' masks from a bool mask of the channels; what is pruned stays pruned."""
        super().keep(atoms)
        before, self._kept = self._kept, int(self.alive().sum())
        self._changes += before - self._kept

    @property
    def _first(self) -> int:
        """Which slice is the output axis of the first producer."""
        name = self.members[0].name
        return next(i for i, its in enumerate(self.slices) if its.is_output and its.name == name)

    def _places(self) -> "Iterator[tuple[PrunedTensor, ChannelPlace]]":
        """Yield each slice with the member that it is in."""
        members = {member.name: member for member in self.members}
        return ((members[its.name], its) for its in self.slices)

    def _with_any(self, entries: Callable[[PrunedTensor], Tensor]) -> Tensor:
        found = torch.zeros(self.channels, dtype=torch.bool, device=self.members[0].masking.device)
        for member, its in self._places():
            of_index = _along(entries(member), its.axis).any(1)
            found |= self._of_channels(of_index, its).any(1)
        return found

    def _entries(self, atoms: Tensor) -> Iterator[tuple[PrunedTensor, Tensor]]:
        """Yield each member with a mask that spreads over it; what is no channel is kept."""
        for member, its in self._places():
            kept = torch.cat([atoms, atoms.new_ones(1)])[its.channel_of_index.to(atoms.device)]
            shape = [1] * len(member.masking.shape)
            shape[its.axis] = len(kept)
            yield member, kept.view(shape).to(member.masking.device)

    def _of_channels(self, of_index: Tensor, its: "ChannelPlace") -> Tensor:
        """Return the values of each channel's indices, ``(channels, most)``, with 0 beyond."""
        table = _table(its.channel_of_index, self.channels).to(of_index.device)
        padded = torch.cat([of_index, of_index.new_zeros(1)])[table]
        return padded.to(self.members[0].masking.device)


def _table(channel: Tensor, channels: int) -> Tensor:
    """Return the indices of each channel, ``(channels, most)``, with -1 beyond.

    Adding up along its rows is exact to the bit on any device, which scattering is not.

    Examples:
        >>> _table(torch.tensor([1, -1, 0, 1]), 2).tolist()
        [[2, -1], [0, 3]]
    """
    order = channel.argsort(stable=True)[int((channel < 0).sum()) :]
    rows = channel[order]
    counts = torch.bincount(rows, minlength=channels)
    starts = counts.cumsum(0) - counts
    table = torch.full((channels, int(counts.max())), -1)
    table[rows, torch.arange(len(rows)) - starts[rows]] = order
    return table


def _along(tensor: Tensor, axis: int) -> Tensor:
    """Return one row for each index of an axis."""
    moved = tensor.movedim(axis, 0)
    return moved.reshape(len(moved), -1)
