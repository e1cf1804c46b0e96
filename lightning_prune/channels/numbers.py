"""The whole numbers among the attributes of a model's modules that count channels.

Torch's own layers read most sizes off their weights. The code of other modules may contain such a
number: `reshape` with a number of heads, for example, would otherwise keep the number and make each
head smaller.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations, product
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_prune.channels.attention import SlimMultiheadAttention
from lightning_prune.channels.coupling import Coupling
from lightning_prune.channels.labels import NO_CHANNEL
from lightning_prune.channels.torch_layers import has_sized_tensors, list_sizes
from lightning_prune.models.names import named_modules, plain_name

_RECORD = "shrunk_numbers"

Removal = Mapping[int, Tensor]
"""For the index of a group, which channels go; bool, an entry for each channel."""

Kind = tuple[type[nn.Module], str]
"""The same attribute in all modules of a class."""

Reading = Mapping[Kind, int | None]
"""For a kind of number, which of the changed sizes the number counts; None for none of them."""


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


class Numbers:
    """The numbers that may count the channels of a removal.

    A number may count an axis that has changed, if it was as long. It may also equal the length by
    accident: the number of classes, for example. A kind of number is read in the same way in all
    modules of a class.

    Args:
        module: The model.
        coupling: Its channels.
        removal: The channels that go.
    """

    def __init__(self, module: nn.Module, coupling: Coupling, removal: Removal) -> None:
        self._choices: dict[Kind, list[tuple[str, list[int]]]] = {}
        children = named_modules(module)
        for name, sizes in _find_new_sizes(coupling, removal).items():
            child = children[name]
            for attribute, value in find_numbers(child).items():
                if changed := [size for size in sizes.get(value, {}) if size != value]:
                    kind = type(child), attribute
                    self._choices.setdefault(kind, []).append((name, changed))

    @property
    def kinds(self) -> list[Kind]:
        """The kinds of numbers that may have changed."""
        return list(self._choices)

    def read(self, reading: Reading) -> list[Setting]:
        """Return the settings of a reading; a kind that it lacks counts the first changed size."""
        return [
            Setting(name, attribute, sizes[min(choice, len(sizes) - 1)])
            for (kind, places) in self._choices.items()
            if (choice := reading.get(kind, 0)) is not None
            for attribute in (kind[1],)
            for name, sizes in places
        ]

    def propose(self, known: Reading, unsure: Iterable[Kind]) -> Iterator[dict[Kind, int | None]]:
        """Yield readings, likely ones first: the fewer kinds differ from the first, the earlier.

        Args:
            known: The reading of kinds that has worked before.
            unsure: The kinds that may be read in another way.
        """
        first = {kind: known.get(kind, 0) for kind in self._choices}
        others = {
            kind: [each for each in self._list_choices(kind) if each != first[kind]]
            for kind in unsure
            if kind in self._choices
        }
        yield first
        for number in range(1, len(others) + 1):
            for kinds in combinations(others, number):
                for choices in product(*(others[kind] for kind in kinds)):
                    yield first | dict(zip(kinds, choices, strict=True))

    def _list_choices(self, kind: Kind) -> list[int | None]:
        return [None, *range(max(len(sizes) for _, sizes in self._choices[kind]))]


def is_size_of_layer(kind: Kind) -> bool:
    """Whether a kind of number is the size of a layer of torch, which the layer itself may show."""
    return kind[1] in list_sizes(kind[0])


def set_numbers(module: nn.Module, settings: Iterable[Setting]) -> None:
    """Give attributes of a module's parts new values, and note there which attributes these are.

    Args:
        module: The module. A later call adds to the notes, which `find_set_numbers` reads.
        settings: The new values.
    """
    children = named_modules(module)
    for name, attribute, value in settings:
        child = children[name]
        setattr(child, attribute, value)
        setattr(child, _RECORD, tuple(dict.fromkeys([*getattr(child, _RECORD, ()), attribute])))


def find_set_numbers(module: nn.Module) -> dict[str, dict[str, int]]:
    """Return by the names of a module's parts the attributes that `set_numbers` has changed."""
    return {
        name: {attribute: getattr(child, attribute) for attribute in getattr(child, _RECORD)}
        for name, child in named_modules(module).items()
        if hasattr(child, _RECORD)
    }


def find_numbers(child: nn.Module) -> dict[str, int]:
    """Return the integers among the attributes of a module that no weight shows."""
    if isinstance(child, nn.MultiheadAttention | SlimMultiheadAttention):
        return {}
    read_off = list_sizes(type(child)) if has_sized_tensors(child) else ()
    return {
        name: value
        for name, value in vars(child).items()
        if type(value) is int and name not in read_off
    }


def _find_new_sizes(coupling: Coupling, removal: Removal) -> dict[str, dict[int, dict[int, None]]]:
    """Return for each module that cuts channels, and each number of pieces, the new numbers.

    The new numbers are in the order in which the axes are cut.
    """
    highest = max((int(cut.labels.max()) for cut in coupling.counted_axes), default=0)
    labels = [coupling.groups[index].labels[gone] for index, gone in removal.items()]
    highest = max(highest, *(int(each.max()) for each in labels))
    is_removed = torch.zeros(highest + 1, dtype=torch.bool, device="cpu")
    is_removed[torch.cat(labels)] = is_removed[NO_CHANNEL] = True
    sizes: dict[str, dict[int, dict[int, None]]] = defaultdict(lambda: defaultdict(dict))
    for cut in coupling.counted_axes:
        is_gone = is_removed[cut.labels].all(1) & (cut.labels != NO_CHANNEL).any(1)
        new_size = len(is_gone) - int(is_gone.sum())
        sizes[plain_name(cut.module)][len(is_gone)][new_size] = None
    return sizes
