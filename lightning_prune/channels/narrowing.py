"""Copies of a module in which groups of channels are narrower, whatever the weights are."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.channels.coupling import ChannelPlace, couple
from lightning_prune.channels.numbers import Numbers
from lightning_prune.channels.removal import remove_channels
from lightning_prune.channels.trial import try_with_generic_weights
from lightning_prune.models.calls import make_call
from lightning_prune.models.names import named_tensors

Key = tuple[int, int, tuple[int, ...]]


class Narrower:
    """Removes the last channels of groups from copies of a module.

    The copies compute other outputs than the module, unless these channels are zero. They have the
    shapes, and so the latency and the size, of the module that `shrink` returns if the same numbers
    of channels are zero. The module is traced once, for any number of copies.

    Args:
        module: The module; left as it is.
        example: The arguments of ``forward``.
        groups: The places of each group's channels, by the name of the group, as in a selection
            of channels.

    Raises:
        ValueError: If the module cannot be traced, or a group cannot be removed.
    """

    def __init__(
        self, module: nn.Module, example: Any, groups: Mapping[str, Sequence[ChannelPlace]]
    ) -> None:
        self._module = module
        self._coupling = couple(module, example)
        known = named_tensors(module)
        indices = {
            _key(known, place): index
            for index, group in enumerate(self._coupling.groups)
            for place in group.places
        }
        self._index = {name: indices[_key(known, places[0])] for name, places in groups.items()}
        removal = self._remove_last(dict.fromkeys(groups, 1))
        trial = try_with_generic_weights(
            module, make_call(module, example), self._coupling, removal
        )
        for name, index in self._index.items():
            if index in trial.refused:
                raise ValueError(
                    f"need channels that can be removed, got '{name}': {trial.refused[index]}"
                )
        trial.drop_idle_numbers()
        self._reading = trial.reading

    def narrow(self, kept: Mapping[str, int]) -> nn.Module:
        """Return a copy of the module in which groups keep the first channels only.

        Args:
            kept: The number of channels to keep by the name of the group. Other groups stay whole.
        """
        sizes = {name: self._coupling.groups[self._index[name]].size for name in kept}
        gone = {name: sizes[name] - number for name, number in kept.items()}
        removal = self._remove_last({name: number for name, number in gone.items() if number})
        if not removal:
            return remove_channels(self._module, self._coupling, {}, [])
        settings = Numbers(self._module, self._coupling, removal).read(self._reading)
        return remove_channels(self._module, self._coupling, removal, settings)

    def _remove_last(self, gone: Mapping[str, int]) -> dict[int, Tensor]:
        """Return which channels go: the last ones of each group."""
        removal = {}
        for name, number in gone.items():
            index = self._index[name]
            size = self._coupling.groups[index].size
            removal[index] = torch.arange(size, device="cpu") >= size - number
        return removal


def _key(known: Mapping[str, Tensor], place: ChannelPlace) -> Key:
    """Return the tensor, axis and indices of a place, also where the tensor has several names."""
    return id(known[place.name]), place.axis, tuple(place.channel_of_index.tolist())
