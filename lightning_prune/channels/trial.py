"""Trials of a removal: which channels can be removed together, and by which numbers in the code."""

import re
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Generic

from torch import nn

from lightning_prune.channels.coupling import CoupledChannels, Coupling
from lightning_prune.channels.numbers import (
    Numbers,
    Reading,
    Removal,
    Setting,
    is_size_of_layer,
)
from lightning_prune.channels.removal import Smaller, remove_channels, zero_channels
from lightning_prune.models.calls import Call
from lightning_prune.models.comparison import Reference
from lightning_prune.models.compiled import copy_module
from lightning_prune.models.errors import describe_error
from lightning_prune.models.generic_weights import fill_with_generic_weights
from lightning_prune.models.progress import note_progress

TOLERANCE = 1e-5
_MOST_READINGS = 64


class Trial(Generic[Smaller]):
    """Removes groups of channels from copies of a module, and compares the outputs.

    Groups are added to those that can be removed, many at once. If the outputs differ, each half is
    added. So the accepted groups have always been tried together.

    Args:
        module: The module; left as it is. The channels of the removal are zero.
        reference: Its outputs.
        coupling: Its channels.
        removal: The channels to remove.
        known: How to read the numbers in the code; by default all likely readings are tried.

    Attributes:
        accepted: The indices of the groups that can be removed together.
        refused: For the index of each other group, the reason.
        reading: How the numbers in the code are read, for the accepted groups.
    """

    def __init__(
        self,
        module: Smaller,
        reference: Reference,
        coupling: Coupling,
        removal: Removal,
        known: Reading | None = None,
    ) -> None:
        self.accepted: list[int] = []
        self.refused: dict[int, str] = {}
        self.reading: Reading = known or {}
        self._is_read = known is not None
        self._module, self._reference, self._coupling = module, reference, coupling
        self._removal = removal
        self._outcomes: dict[tuple[frozenset[int], frozenset[Setting]], str | None] = {}
        self._kin = {index: _describe_kin(coupling.groups[index]) for index in removal}
        self._refused_kin: set[str] = set()
        if removal:
            self._add(sorted(removal, key=self._kin.__getitem__))

    def drop_idle_numbers(self) -> None:
        """Change the reading so that only numbers change that are shown to matter, one by one.

        A number without an effect on the outputs stays as it is. The sizes that the layers of torch
        show stay right in any case.
        """
        if not self.accepted:
            return
        numbers = self._count(self.accepted)
        self.reading = {kind: self.reading.get(kind, 0) for kind in numbers.kinds}
        for kind, choice in self.reading.items():
            without = {**self.reading, kind: None}
            is_idle = choice is not None and not is_size_of_layer(kind)
            if is_idle and self._compare(self.accepted, numbers.read(without)) is None:
                self.reading = without

    def remove(self) -> Smaller:
        """Return a copy of the module without the accepted groups."""
        if not self.accepted:
            return copy_module(self._module)
        removal = {index: self._removal[index] for index in self.accepted}
        settings = self._count(self.accepted).read(self.reading)
        return remove_channels(self._module, self._coupling, removal, settings)

    def _add(self, indices: Sequence[int]) -> None:
        """Accept groups together, or refuse the only group, or add them in two parts.

        The same layers of many blocks are kin. If one of them is refused, likely all are: so the
        others are tried one by one.
        """
        done = len(self.accepted) + len(self.refused)
        note_progress("trying the removal of groups of channels", done, len(self._removal))
        kin = [self._kin[index] for index in indices]
        if len(indices) > 1 and len(set(kin)) == 1 and kin[0] in self._refused_kin:
            for index in indices:
                self._add([index])
            return
        why = self._try(indices)
        if why is None:
            self.accepted += indices
        elif len(indices) == 1:
            self.refused[indices[0]] = why
            self._refused_kin.add(kin[0])
        else:
            middle = _find_middle(kin)
            self._add(indices[:middle])
            self._add(indices[middle:])

    def _try(self, indices: Sequence[int]) -> str | None:
        """Return why groups cannot be removed together with the accepted; None if they can.

        For a single group, all readings of the numbers are tried that it may change.
        """
        together = [*self.accepted, *indices]
        numbers = self._count(together)
        is_unsure = len(indices) == 1 and not self._is_read
        unsure = self._count(indices).kinds if is_unsure else []
        first_why = None
        for reading in islice(numbers.propose(self.reading, unsure), _MOST_READINGS):
            why = self._compare(together, numbers.read(reading))
            if why is None:
                self.reading = {**self.reading, **reading}
                return None
            first_why = first_why or why
        return first_why

    def _compare(self, indices: Iterable[int], settings: Sequence[Setting]) -> str | None:
        """Return why the outputs are not those of the module; None if they are."""
        key = frozenset(indices), frozenset(settings)
        if key not in self._outcomes:
            removal = {index: self._removal[index] for index in indices}
            self._outcomes[key] = self._find_difference(removal, settings)
        return self._outcomes[key]

    def _find_difference(self, removal: Removal, settings: Sequence[Setting]) -> str | None:
        try:
            smaller = remove_channels(self._module, self._coupling, removal, settings)
            difference = self._reference.difference(smaller, limit=TOLERANCE)
        except Exception as error:  # of the model's own code
            return f"forward fails without it: {describe_error(error)}"
        is_same = difference <= TOLERANCE
        return None if is_same else f"outputs differ by {difference:.1e} without it"

    def _count(self, indices: Iterable[int]) -> Numbers:
        removal = {index: self._removal[index] for index in indices}
        return Numbers(self._module, self._coupling, removal)


def try_with_generic_weights(
    module: nn.Module, call: Call, coupling: Coupling, removal: Removal
) -> Trial[nn.Module]:
    """Try a removal on a copy whose weights hide nothing, and are zero where channels go.

    Outputs with NaN or infinities show no difference. If the copy has such outputs, the module's
    own weights are tried.

    Args:
        module: Left as it is.
        call: The arguments of ``forward``.
        coupling: The channels of the module.
        removal: The channels to remove.
    """
    generic = copy_module(module)
    fill_with_generic_weights(generic)
    zero_channels(generic, coupling, removal)
    try:
        reference = Reference(generic, call, 1)
    except Exception:  # of the model's own code, which may refuse such weights
        reference = None
    if reference is not None and reference.is_finite:
        return Trial(generic, reference, coupling, removal)
    own = copy_module(module)
    zero_channels(own, coupling, removal)
    return Trial(own, Reference(own, call, 1), coupling, removal)


def _describe_kin(group: CoupledChannels) -> str:
    """Return the name of a producer without numbers."""
    return re.sub(r"\d+", "", group.producers[0])


def _find_middle(kin: Sequence[str]) -> int:
    """Return where to cut sorted names into two parts, between different names if possible."""
    borders = [i for i in range(1, len(kin)) if kin[i - 1] != kin[i]] or range(1, len(kin))
    return min(borders, key=lambda border: abs(border - len(kin) / 2))
