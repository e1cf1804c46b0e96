"""Names that differ in numbers only, as one name: ``layer.{0..11}.weight``."""

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Generic, TypeVar

T = TypeVar("T")

_NUMBER = re.compile(r"(?<!\d)(0|[1-9]\d*)(?!\d)")  # no leading zeros, which a number would lose


@dataclass(frozen=True, kw_only=True)
class NameGroup(Generic[T]):
    """Items whose names differ in numbers only.

    Args:
        texts: The common parts of the names, around the numbers.
        numbers: The numbers at each place between two texts.
        places: The places of the items in their sequence, rising.
        items: The items, in this order.
    """

    texts: tuple[str, ...]
    numbers: tuple[frozenset[int], ...]
    places: tuple[int, ...]
    items: tuple[T, ...]

    @property
    def label(self) -> str:
        """The common name, with the numbers in braces where there are several."""
        pairs = zip_longest(self.texts, map(_show, self.numbers), fillvalue="")
        return "".join(text + number for text, number in pairs)


def group_names(
    items: Sequence[T], name: Callable[[T], str], kind: Callable[[T], Hashable]
) -> list[NameGroup[T]]:
    """Group items of the same kind whose names differ in numbers only.

    The names of a group are all combinations of the numbers in the label, each once.

    Args:
        items: The items.
        name: Returns the name of an item.
        kind: Returns what the items of a group have in common.

    Returns:
        The groups, in the order of their first items.

    Examples:
        >>> names = ["0.weight", "head.weight", "1.weight", "2.weight", "4.weight"]
        >>> [group.label for group in group_names(names, name=str, kind=len)]
        ['{0..2,4}.weight', 'head.weight']
    """
    groups = []
    for place, item in enumerate(items):
        parts = _NUMBER.split(name(item))
        numbers = tuple(frozenset([int(number)]) for number in parts[1::2])
        groups.append(
            NameGroup(texts=tuple(parts[::2]), numbers=numbers, places=(place,), items=(item,))
        )
    for at in range(max((len(group.numbers) for group in groups), default=0)):
        alike: dict[Hashable, list[NameGroup[T]]] = {}
        for group in groups:
            others = group.numbers[:at], group.numbers[at + 1 :], len(group.numbers) > at
            alike.setdefault((group.texts, others, kind(group.items[0])), []).append(group)
        groups = [_join(each, at) for each in alike.values()]
    return sorted(groups, key=lambda group: group.places)


def _join(groups: Sequence[NameGroup[T]], at: int) -> NameGroup[T]:
    """Return groups of the same name, but for the numbers at a place, as one."""
    first = groups[0]
    if len(groups) == 1:
        return first
    numbers = frozenset[int]().union(*(group.numbers[at] for group in groups))
    items = {place: item for g in groups for place, item in zip(g.places, g.items, strict=True)}
    return replace(
        first,
        numbers=(*first.numbers[:at], numbers, *first.numbers[at + 1 :]),
        places=tuple(sorted(items)),
        items=tuple(items[place] for place in sorted(items)),
    )


def _show(numbers: frozenset[int]) -> str:
    """Return a number, or several in braces, where runs of at least three are shortened."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    shown = [
        text
        for run in runs
        for text in ([f"{run[0]}..{run[-1]}"] if len(run) > 2 else map(str, run))
    ]
    return f"{{{','.join(shown)}}}" if len(numbers) > 1 else shown[0]
