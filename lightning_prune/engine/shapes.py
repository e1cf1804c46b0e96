"""Shapes of tensors after the removal of channels, as functions of the channels that are kept."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from lightning_prune.engine.groups import Group
from lightning_prune.models.names import named_tensors


@dataclass(frozen=True, kw_only=True)
class AxisLength:
    r"""The length of an axis, by the number of channels that each group keeps.

    .. math:: n_0 + \sum_g w_g \max(k_g, 1)

    Of a group without kept channels, `shrink` leaves one.

    Args:
        fixed: Number of indices :math:`n_0` that always stay.
        widths: Names of groups, each with the number of indices :math:`w_g` of a channel.

    Examples:
        >>> axis = AxisLength(fixed=3, widths=(("stem.weight", 2),))
        >>> axis({"stem.weight": 5}), axis({"stem.weight": 0})
        (13, 5)
    """

    fixed: int
    widths: tuple[tuple[str, int], ...] = ()

    def __call__(self, kept: Mapping[str, int]) -> int:
        """Return the length.

        Args:
            kept: Number of channels that each group keeps, by name.
        """
        return self.fixed + sum(width * max(kept[group], 1) for group, width in self.widths)

    def scale(self, numerator: int, denominator: int) -> "AxisLength | None":
        """Return the axis with a fraction, or a multiple, of the indices; None if it has none."""
        numbers = [self.fixed, *(width for _, width in self.widths)]
        if any(number * numerator % denominator for number in numbers):
            return None
        fixed, *widths = [number * numerator // denominator for number in numbers]
        names = [group for group, _ in self.widths]
        return AxisLength(fixed=fixed, widths=tuple(zip(names, widths, strict=True)))


Shape = tuple[AxisLength, ...]
"""The lengths of all axes of a tensor."""


def is_fixed(shape: Shape) -> bool:
    """Whether no group changes a shape."""
    return not any(axis.widths for axis in shape)


def count_entries(shape: Shape, kept: Mapping[str, int]) -> int:
    """Return the number of entries of a tensor after removal."""
    return math.prod(axis(kept) for axis in shape)


def fix_shape(lengths: Iterable[int]) -> Shape:
    """Return the shape of a tensor that no group changes."""
    return tuple(AxisLength(fixed=length) for length in lengths)


def find_shapes(model: nn.Module, groups: Iterable[Group]) -> dict[str, Shape]:
    """Return the shape of each parameter and buffer, by each plain name.

    Args:
        model: The dense model.
        groups: The groups; those of channels change shapes.
    """
    tensors = named_tensors(model)
    widths: dict[tuple[int, int], dict[str, int]] = defaultdict(dict)
    channels: dict[str, int] = {}
    for group in groups:
        channels[group.name] = group.total
        for place in group.removable_places:
            width = int((place.channel_of_index == 0).sum())
            widths[id(tensors[place.name]), place.axis][group.name] = width
    shapes = {}
    for name, tensor in tensors.items():
        axes = []
        for axis, length in enumerate(tensor.shape):
            of_axis = tuple(widths.get((id(tensor), axis), {}).items())
            removable = sum(width * channels[group] for group, width in of_axis)
            axes.append(AxisLength(fixed=length - removable, widths=of_axis))
        shapes[name] = tuple(axes)
    return shapes
