"""Costs of a model, as functions of the atoms that each group keeps."""

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, ClassVar

from lightning_prune.engine.extents import Axis
from lightning_prune.engine.groups import Group
from lightning_prune.recipe.budgets import Unit


class Cost(ABC):
    """The cost of a model by the number of atoms that each group keeps; it never falls with them.

    Attributes:
        unit: Unit of the cost.
        largest_error: Fraction by which the cost may be off before a measurement corrects it; None
            for a cost that is exact.
    """

    unit: Unit
    largest_error: ClassVar[float | None] = None

    @abstractmethod
    def __call__(self, kept: Mapping[str, int]) -> float:
        """Return the cost of the pruned model.

        Args:
            kept: Number of atoms that each group keeps, by the name of the group; of all groups.
        """

    def corrected(self, kept: Mapping[str, int], measured: float) -> "Cost":
        """Return the cost that is exact for a model that was measured; an exact cost is the same.

        Args:
            kept: Number of atoms that each group of the measured model keeps, by name.
            measured: The measured cost.
        """
        return self

    def state_dict(self) -> dict[str, Any]:
        """Return what was measured, so that a resumed training tells the same costs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Take what an earlier training has measured."""

    @abstractmethod
    def dense_parts(self) -> Mapping[str, float]:
        """Return the cost of each part that no group can lower, by the name of a parameter."""


class AxisCost(Cost):
    r"""A cost that falls with the lengths of axes, such as the rows and columns of matrices.

    .. math:: \sum_p c_p \prod_{a \in p} \frac{n_a(k)}{n_a}

    Here part p costs :math:`c_p` in the dense model, and :math:`n_a(k)` of the :math:`n_a` indices
    of an axis remain.

    Args:
        unit: Unit of the cost.
        parts: For each part by name, the dense cost and the axes that shorten it. Parts of one name
            add up.

    Examples:
        >>> rows = Axis(length=8, spans=(("a", 8, 2),))
        >>> cost = AxisCost("macs", [("first", 40, [rows]), ("last", 7, [])])
        >>> cost({"a": 4}), cost({"a": 1}), cost.dense_parts()
        (47.0, 17.0, {'last': 7.0})
    """

    def __init__(
        self, unit: Unit, parts: Iterable[tuple[str, int | Fraction, Sequence[Axis]]]
    ) -> None:
        self.unit = unit
        self._axes: list[Axis] = []
        self._dense: dict[str, float] = defaultdict(float)
        numbers: dict[Axis, int] = {}
        terms: dict[tuple[int, ...], Fraction] = defaultdict(Fraction)
        for name, total, axes in parts:
            if not axes:
                self._dense[name] += float(total)
            for axis in axes:
                numbers.setdefault(axis, len(numbers))
            share = Fraction(total, math.prod(axis.length for axis in axes))
            terms[tuple(sorted(numbers[axis] for axis in axes))] += share
        self._axes = list(numbers)
        self._terms = [(_simplify(share), axes) for axes, share in terms.items()]

    def __call__(self, kept: Mapping[str, int]) -> float:
        """Return the cost of the pruned model.

        Args:
            kept: Number of atoms that each group keeps, by the name of the group; of all groups.
        """
        lengths = [axis.count(kept) for axis in self._axes]
        total: float = 0
        for share, axes in self._terms:
            for axis in axes:
                share *= lengths[axis]
            total += share
        return float(total)

    def dense_parts(self) -> Mapping[str, float]:
        """Return the cost of each part that no group can lower, by name, the highest first."""
        return dict(sorted(self._dense.items(), key=lambda part: -part[1]))


def find_axes(
    groups: Iterable[Group], shapes: Mapping[str, Sequence[int]]
) -> dict[str, tuple[Axis, ...]]:
    """Return the axes of each parameter that groups shorten, by the name of the parameter.

    Args:
        groups: All groups of the selection.
        shapes: The shape of each parameter of a group.
    """
    spans: dict[str, dict[tuple[int | None, int], list[tuple[str, int, int]]]]
    spans = defaultdict(lambda: defaultdict(list))
    for group in groups:
        for extent in group.extents():
            shape, axis = shapes[extent.parameter], extent.axis
            length = extent.length or (math.prod(shape) if axis is None else shape[axis])
            of_axis = spans[extent.parameter][axis, length]
            of_axis.append((group.name, extent.covered, extent.width))
    return {
        name: tuple(
            Axis(length=length, spans=tuple(sorted(of_axis)))
            for (_, length), of_axis in axes.items()
        )
        for name, axes in spans.items()
    }


def _simplify(number: Fraction) -> float:
    """Return a whole number as an int, with which Python calculates exactly."""
    return number.numerator if number.denominator == 1 else float(number)
