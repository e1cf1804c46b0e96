"""Where the atoms of groups lie: in parameters, and along the axes of products."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lightning_prune.channels.multiplications import Multiplication


@dataclass(frozen=True, kw_only=True)
class Extent:
    """The atoms of a group along an axis of a parameter.

    Args:
        parameter: Name of the parameter.
        axis: The axis; None if atoms are any parts of the parameter, so that indices are entries.
        covered: Number of indices that belong to atoms of the group.
        width: Indices of each atom. If blocks at an edge are smaller, it is that of whole blocks.
        length: Number of equal parts that the parameter counts as; None for the length of the axis.
    """

    parameter: str
    axis: int | None
    covered: int
    width: int
    length: int | None = None


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The indices of an axis, as a function of the atoms that groups keep.

    Args:
        length: Number of indices if all atoms are kept.
        spans: For each group, by name: how many indices belong to its atoms, and to each atom.

    Examples:
        >>> axis = Axis(length=12, spans=(("a", 8, 2), ("b", 3, 1)))
        >>> axis.count({"a": 3, "b": 0}), axis.count({"a": 4, "b": 3})
        (7, 12)
    """

    length: int
    spans: tuple[tuple[str, int, int], ...]

    def count(self, kept: Mapping[str, int]) -> int:
        """Return how many indices remain: never too few, also where some blocks are smaller."""
        remaining = self.length
        for name, covered, width in self.spans:
            left = width * kept[name]
            if left < covered:
                remaining += left - covered
        return remaining


@dataclass(frozen=True, kw_only=True)
class Product:
    """A product that the model computes, and where removed channels shorten it.

    Args:
        module: Name of the module whose code calls the operation.
        parameters: Names of the parameters that a factor is computed from; none for a product of
            activations.
        macs: Number of multiplications in the graph.
        axes: The axes along which channels lie, without those of the parameters.
    """

    module: str
    parameters: frozenset[str]
    macs: int
    axes: tuple[Axis, ...]


def describe_products(
    multiplications: "Iterable[Multiplication]", channels: Mapping[str, Tensor]
) -> tuple[Product, ...]:
    """Return the products of a graph with the groups that shorten them.

    Args:
        multiplications: The products, with labels.
        channels: The labels of the channels of each group, by name.
    """
    group_of = {label: name for name, labels in channels.items() for label in labels.tolist()}
    sizes = {name: len(labels) for name, labels in channels.items()}
    return tuple(
        Product(
            module=each.module,
            parameters=each.parameters,
            macs=each.macs,
            axes=tuple(
                axis for labels in each.axes if (axis := _read_axis(labels, group_of, sizes)).spans
            ),
        )
        for each in multiplications
    )


def _read_axis(labels: Tensor, group_of: Mapping[int, str], sizes: Mapping[str, int]) -> Axis:
    """Return the axis; only a group with all channels there, equally long, shortens it."""
    counts: dict[str, list[int]] = {}
    found = torch.unique(labels, return_counts=True)
    for label, count in zip(*(each.tolist() for each in found), strict=True):
        if label in group_of:
            counts.setdefault(group_of[label], []).append(count)
    spans = (
        (name, sum(widths), widths[0])
        for name, widths in counts.items()
        if len(widths) == sizes[name] and len(set(widths)) == 1
    )
    return Axis(length=len(labels), spans=tuple(spans))
