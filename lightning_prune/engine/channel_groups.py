"""Channels that live or die together, in all tensors where they lie."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_prune.engine.coupled_groups import CoupledGroup
from lightning_prune.engine.extents import Extent
from lightning_prune.engine.groups import Scores
from lightning_prune.recipe.tensor import PrunedTensor
from lightning_prune.tensors.ranking import compute_keep

if TYPE_CHECKING:
    from lightning_prune.channels.coupling import ChannelPlace


@dataclass(kw_only=True, eq=False)
class ChannelGroup(CoupledGroup):
    """The output channels of a layer, in all tensors where they lie; an atom is a channel.

    A tensor can be in several groups, with its rows in one group and its columns in another. It
    keeps the weights that all of them keep.

    Args:
        places: Where the channels lie in each member; a member can have several places.
        buffers: Where the channels lie in buffers, which hold nothing to prune.
        channels: Number of channels.
        width: Indices along the producers' output axis for each channel, such as the size of an
            attention head.
    """

    places: "Sequence[ChannelPlace]"
    buffers: "Sequence[ChannelPlace]" = ()
    channels: int
    width: int
    _copies: dict[tuple[str, int, torch.device], Tensor] = field(init=False, default_factory=dict)

    @cached_property
    def name(self) -> str:
        """The name of the first producer, with the range of indices if it makes other channels too.

        Such are the halves of a layer whose output is cut in two.
        """
        channel = self._first_output.channel_of_index
        indices = (channel >= 0).nonzero().flatten()
        if len(indices) == len(channel):
            return self.members[0].name
        return f"{self.members[0].name}[{int(indices[0])}:{int(indices[-1]) + 1}]"

    @property
    def kind(self) -> str:
        """The classes of the layers where the channels lie, each with the axis, as a sorted list.

        So heads are alike, feed-forward layers are alike, and so are the inner channels of alike
        blocks. A residual stream lies in other numbers of layers than these.

        Examples:
            ``"BatchNorm2d[0] Conv2d[0] Conv2d[1]"``, ``"Linear[0] Linear[1] in blocks"``
        """
        lies = {
            (id(member.owner), type(member.owner).__name__, place.axis)
            for member, place in self._places()
        }
        kinds = " ".join(sorted(f"{layer}[{axis}]" for _, layer, axis in lies))
        return f"{kinds} in blocks" if self.width > 1 else kinds

    @property
    def producers(self) -> tuple[str, ...]:
        """Names of the weights that make the channels."""
        return tuple(dict.fromkeys(place.name for place in self.places if place.is_output))

    @property
    def removable_places(self) -> "Sequence[ChannelPlace]":
        """Where the channels lie in parameters and buffers."""
        return (*self.places, *self.buffers)

    @property
    def weights_per_atom(self) -> float:
        """Number of weights of a channel in all members that are scored."""
        weights = 0.0
        for member, place in self._places():
            if member.is_scored:
                covered = int((place.channel_of_index >= 0).sum())
                weights += member.total * covered / len(place.channel_of_index)
        return weights / self.channels

    @property
    def total(self) -> int:
        """Number of channels, pruned ones included."""
        return self.channels

    def extents(self) -> Iterator[Extent]:
        """Yield the axes along which the channels lie, in all members."""
        for place in self.places:
            covered = int((place.channel_of_index >= 0).sum())
            width = covered // self.channels
            yield Extent(parameter=place.name, axis=place.axis, covered=covered, width=width)

    def round_keep(self, due: int) -> int:
        """Return the number of channels that are kept where an allocation gives ``due``.

        Rounding does not take the group above the largest sparsity that it may reach.
        """
        least = compute_keep(self.channels, self.members[0].most)
        numbers = (self.pattern.round_kept(n, self.channels, self.width) for n in count(due))
        return next(kept for kept in numbers if kept >= least)

    def rank(self, scores: Scores) -> Tensor:
        """Return one score a channel: the mean over its weights in all members that are scored."""
        device = self.members[0].mask.device
        sums = torch.zeros(self.channels, dtype=torch.float64, device=device)
        weights = torch.zeros_like(sums)
        for member, place in self._places():
            if member.name in scores:
                of_member = member.output_first(scores[member.name].whole)
                rows = _flatten_rows(of_member, place.axis)
                sums += self._gather(rows.sum(1, dtype=torch.float64), place).sum(1)
                ones = torch.full_like(rows[:, 0], rows.shape[1], dtype=torch.float64)
                weights += self._gather(ones, place).sum(1)
        return sums / weights

    def spread(self, atoms: Tensor) -> Iterator[tuple[PrunedTensor, Tensor]]:
        """Yield each member with a mask that spreads over it; indices of no channel are kept."""
        for member, place in self._places():
            channel = self._copy(place, atoms.device, _read_channels)
            kept = torch.cat([atoms, atoms.new_ones(1)])[channel]
            shape = [1] * len(member.mask.shape)
            shape[place.axis] = len(kept)
            yield member, kept.view(shape).to(member.mask.device)

    @property
    def _first_output(self) -> "ChannelPlace":
        """The output axis of the first producer."""
        name = self.members[0].name
        return next(place for place in self.places if place.is_output and place.name == name)

    def _places(self) -> "Iterator[tuple[PrunedTensor, ChannelPlace]]":
        """Yield each place with the member that it is in."""
        members = {member.name: member for member in self.members}
        return ((members[place.name], place) for place in self.places)

    def find_any(self, weights: Callable[[PrunedTensor], Tensor]) -> Tensor:
        """Return which channels have a weight for which a bool tensor of a member is true."""
        found = torch.zeros(self.channels, dtype=torch.bool, device=self.members[0].mask.device)
        for member, place in self._places():
            of_index = _flatten_rows(weights(member), place.axis).any(1)
            found |= self._gather(of_index, place).any(1)
        return found

    def _gather(self, of_index: Tensor, place: "ChannelPlace") -> Tensor:
        """Return the values of each channel's indices, ``(channels, most)``, with 0 beyond."""
        table = self._copy(place, of_index.device, self._tabulate)
        padded = torch.cat([of_index, of_index.new_zeros(1)])[table]
        return padded.to(self.members[0].mask.device)

    def _copy(
        self, place: "ChannelPlace", device: torch.device, make: "Callable[[ChannelPlace], Tensor]"
    ) -> Tensor:
        """Return indices of a place on a device, where they stay: to send them is to wait."""
        index = next(index for index, each in enumerate(self.places) if each is place)
        key = make.__name__, index, device
        if key not in self._copies:
            self._copies[key] = make(place).to(device)
        return self._copies[key]

    def _tabulate(self, place: "ChannelPlace") -> Tensor:
        """Return the indices of each channel of a place, ``(channels, most)``, with -1 beyond."""
        return _tabulate(place.channel_of_index, self.channels)


def _read_channels(place: "ChannelPlace") -> Tensor:
    return place.channel_of_index


def _tabulate(channel: Tensor, channels: int) -> Tensor:
    """Return the indices of each channel, ``(channels, most)``, with -1 beyond.

    Adding up along its rows is exact to the bit on any device, which scattering is not.

    Examples:
        >>> _tabulate(torch.tensor([1, -1, 0, 1]), 2).tolist()
        [[2, -1], [0, 3]]
    """
    order = channel.argsort(stable=True)[int((channel < 0).sum()) :]
    rows = channel[order]
    counts = torch.bincount(rows, minlength=channels)
    starts = counts.cumsum(0) - counts
    table = torch.full((channels, int(counts.max())), -1, device=channel.device)
    table[rows, torch.arange(len(rows), device=channel.device) - starts[rows]] = order
    return table


def _flatten_rows(tensor: Tensor, axis: int) -> Tensor:
    """Return one row for each index of an axis."""
    moved = tensor.movedim(axis, 0)
    return moved.reshape(len(moved), -1)
