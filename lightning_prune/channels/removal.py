"""Removal of channels from a copy of a module, and the numbers in its code that count them."""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lightning_prune.channels.attention import SlimMultiheadAttention, slim_attention
from lightning_prune.channels.coupling import ChannelPlace, Coupling
from lightning_prune.channels.labels import NO_CHANNEL
from lightning_prune.models.compiled import copy_module
from lightning_prune.models.names import named_modules, named_tensors, plain_name

Smaller = TypeVar("Smaller", bound=nn.Module)

_TRIES = 16

Removal = Mapping[int, Tensor]
"""For the index of a group, which channels go; bool, an entry for each channel."""


class Setting(NamedTuple):
    """A new value for an attribute that the code of a module reads, such as a number of heads.

    Attributes:
        module: The name of the module.
        attribute: The name of the attribute.
        value: The new value.
    """

    module: str
    attribute: str
    value: int


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
    for child, original in zip(smaller.modules(), module.modules(), strict=True):
        _fit_layer(child, original)
    return smaller


def find_removed(part: ChannelPlace, gone: Tensor) -> Tensor:
    """Return which indices along an axis belong to channels that go."""
    return (part.channel_of_index >= 0) & gone[part.channel_of_index.clamp(min=0)]


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


def find_numbers(child: nn.Module) -> dict[str, int]:
    """Return the integers among the attributes of a module."""
    return {name: value for name, value in vars(child).items() if type(value) is int}


def set_numbers(module: nn.Module, settings: Iterable[Setting]) -> None:
    """Give attributes of a module's parts new values, where those differ."""
    children = named_modules(module)
    for name, attribute, value in settings:
        if getattr(children[name], attribute, value) != value:
            setattr(children[name], attribute, value)


def propose_settings(
    module: nn.Module, coupling: Coupling, removal: Removal
) -> Iterator[list[Setting]]:
    """Yield possible settings for the modules that cut channels into pieces, likely ones first.

    A number of heads, for example: otherwise, `reshape` keeps the number and shrinks each head. A
    number may equal two sizes, one that has changed and one that has not, as with as many heads as
    entries in a head. Both readings are tried, the same in all modules of a class, and finally no
    setting at all.
    """
    certain: list[Setting] = []
    doubtful: dict[tuple[type[nn.Module], str], list[Setting]] = defaultdict(list)
    children = named_modules(module)
    for name, by_size in _find_new_sizes(coupling, removal).items():
        child = children[name]
        if isinstance(child, nn.MultiheadAttention | SlimMultiheadAttention):
            continue  # The module in their place reads these numbers off its weights.
        for attribute, value in find_numbers(child).items():
            changed = by_size.get(value, {value}) - {value}
            if len(changed) == 1:
                is_certain = value not in by_size[value]
                kind = certain if is_certain else doubtful[type(child), attribute]
                kind.append(Setting(name, attribute, changed.pop()))
    choices = itertools.product((True, False), repeat=len(doubtful))
    for chosen in itertools.islice(choices, _TRIES):
        likely = itertools.chain.from_iterable(itertools.compress(doubtful.values(), chosen))
        yield [*certain, *likely]
    if certain or doubtful:
        yield []


def _find_new_sizes(coupling: Coupling, removal: Removal) -> dict[str, dict[int, set[int]]]:
    """Return for each module that cuts channels, and each number of pieces, the new numbers."""
    removed = torch.cat([coupling.groups[index].labels[gone] for index, gone in removal.items()])
    sizes: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for cut in coupling.counted_axes:
        is_gone = (torch.isin(cut.labels, removed) | (cut.labels == NO_CHANNEL)).all(1)
        is_gone &= (cut.labels != NO_CHANNEL).any(1)
        new_size = len(is_gone) - int(is_gone.sum())
        sizes[plain_name(cut.module)][len(is_gone)].add(new_size)
    return sizes


def _fit_layer(child: nn.Module, original: nn.Module) -> None:
    """Give a layer of torch the sizes of its new weight."""
    weight, before = getattr(child, "weight", None), getattr(original, "weight", None)
    if not isinstance(weight, Tensor) or not isinstance(before, Tensor):
        return
    if isinstance(child, _ConvNd):
        _fit_convolution(child, weight, before)
    elif isinstance(child, nn.Linear):
        child.out_features, child.in_features = weight.shape
    elif isinstance(child, nn.modules.batchnorm._NormBase):
        child.num_features = len(weight)
    elif isinstance(child, nn.GroupNorm):
        child.num_groups = child.num_groups * len(weight) // child.num_channels
        child.num_channels = len(weight)
    elif isinstance(child, nn.Embedding):
        child.embedding_dim = weight.shape[1]
    elif isinstance(child, nn.PReLU):
        child.num_parameters = len(weight)
    elif type(child).__name__ == "Conv1D":  # of Hugging Face
        child.nx, child.nf = weight.shape  # type: ignore[assignment]


def _fit_convolution(child: _ConvNd, weight: Tensor, before: Tensor) -> None:
    if weight.shape[0] != before.shape[0] and child.groups == child.in_channels > 1:
        child.groups = child.groups * weight.shape[0] // before.shape[0]
    sizes = weight.shape[0], weight.shape[1] * child.groups
    if isinstance(child, _ConvTransposeNd):
        child.in_channels, child.out_channels = sizes
    else:
        child.out_channels, child.in_channels = sizes
