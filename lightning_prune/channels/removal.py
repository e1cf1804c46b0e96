"""Removal of channels from a copy of a module."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from lightning_prune.channels.attention import slim_attention
from lightning_prune.channels.coupling import ChannelPlace, Coupling
from lightning_prune.channels.numbers import Removal, Setting, set_numbers
from lightning_prune.channels.torch_layers import fit_layer
from lightning_prune.models.compiled import copy_module
from lightning_prune.models.names import named_tensors

Smaller = TypeVar("Smaller", bound=nn.Module)


def remove_channels(
    module: Smaller, coupling: Coupling, removal: Removal, settings: Iterable[Setting]
) -> Smaller:
    """Return a copy without some channels.

    Args:
        module: Left as it is.
        coupling: The channels of the module.
        removal: The channels that go.
        settings: New values for numbers that the code of the module counts on.
    """
    smaller = copy_module(module)
    stays: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for index, gone in removal.items():
        for part in coupling.groups[index].places:
            before = stays[part.name].get(
                part.axis, torch.ones_like(part.channel_of_index, dtype=torch.bool)
            )
            stays[part.name][part.axis] = before & ~find_removed(part, gone)
    tensors = named_tensors(smaller)
    replacements = {name: tensors[name].detach() for name in stays}
    for name, axes in stays.items():
        for axis, kept in axes.items():
            indices = kept.nonzero().flatten().to(tensors[name].device)
            replacements[name] = replacements[name].index_select(axis, indices)
    put_tensors(smaller, replacements)
    slim_attention(smaller)
    set_numbers(smaller, settings)
    for child in smaller.modules():
        fit_layer(child)
    return smaller


def find_removed(part: ChannelPlace, gone: Tensor) -> Tensor:
    """Return which indices along an axis belong to channels that go."""
    return (part.channel_of_index >= 0) & gone[part.channel_of_index.clamp(min=0)]


def zero_channels(module: nn.Module, coupling: Coupling, removal: Removal) -> None:
    """Set to zero all that parameters store for some channels."""
    tensors = named_tensors(module)
    with torch.no_grad():
        for index, gone in removal.items():
            for part in coupling.groups[index].places:
                if isinstance(tensor := tensors[part.name], nn.Parameter):
                    tensor.movedim(part.axis, 0)[find_removed(part, gone)] = 0.0


def put_tensors(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors of other shapes in the place of parameters and buffers, wherever they hang."""
    named = named_tensors(module)
    replacements: dict[int, Tensor] = {}
    for name, tensor in tensors.items():
        old, new = named[name], tensor.contiguous()
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, requires_grad=old.requires_grad)
        replacements[id(old)] = new
    for child in module.modules():
        for registered in (child._parameters, child._buffers):
            for attribute, value in list(registered.items()):
                if id(value) in replacements:
                    registered[attribute] = replacements[id(value)]  # type: ignore[assignment]
