"""The layers of a model as products of the channels that groups keep along the axes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from lightning_prune.engine.candidates import Selection
from lightning_prune.engine.count_costs import list_macs
from lightning_prune.models.calls import make_call


@dataclass(frozen=True, kw_only=True)
class ChannelLayer:
    r"""Multiplications that shrink with the channels along the axes of their factors.

    The fraction of the work that remains is a product over the axes,

    .. math:: f = \prod_{a} \Bigl(1 - \sum_{g} w_{ag} (1 - x_g)\Bigr)

    where :math:`x_g` is the fraction that group g keeps, and :math:`w_{ag}` the part of axis a
    that the group fills. So two groups that share a layer do not save the same work twice.

    Args:
        name: The name of the tensor, or of the module that multiplies activations.
        work: Multiply-adds in the dense model.
        axes: For each axis with channels, the part that each group fills, by its name.
    """

    name: str
    work: float
    axes: tuple[Mapping[str, float], ...]

    def fraction(self, kept: Callable[[str], float]) -> float:
        """Return the fraction of the work that remains.

        Args:
            kept: Returns the fraction that a group keeps, in [0, 1], by the name of the group.
        """
        product = 1.0
        for axis in self.axes:
            product *= max(0.0, 1 - sum(part * (1 - kept(group)) for group, part in axis.items()))
        return product

    @property
    def groups(self) -> tuple[str, ...]:
        """The names of the groups along the axes."""
        return tuple(dict.fromkeys(group for axis in self.axes for group in axis))


def find_layers(model: nn.Module, selection: Selection, example: Any) -> tuple[ChannelLayer, ...]:
    """Return the layers of a model that multiply, those without a group included.

    Args:
        model: The model; it stays as it is.
        selection: The parameters and groups of channels of the model.
        example: The arguments of ``forward``.

    Raises:
        ValueError: If there is no example, or a parameter has no shape yet.
    """
    parts = list_macs(model, selection, make_call(model, example))
    return tuple(
        ChannelLayer(
            name=name,
            work=float(macs),
            axes=tuple(
                {group: covered / axis.length for group, covered, _ in axis.spans} for axis in axes
            ),
        )
        for name, macs, axes in parts
    )
