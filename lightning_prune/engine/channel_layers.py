"""The layers of a model as products of the channels that groups keep along the axes."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lightning_prune.engine.channel_groups import ChannelGroup
from lightning_prune.models.calls import make_call
from lightning_prune.models.compiled import copy_module
from lightning_prune.models.counting import count
from lightning_prune.models.names import owner_of, plain_name
from lightning_prune.models.undisturbed import keep_generators


@dataclass(frozen=True, kw_only=True)
class ChannelLayer:
    r"""A tensor of weights whose work shrinks with the channels along the axes.

    The fraction of the work that remains is a product over the axes,

    .. math:: f = \prod_{a} \Bigl(1 - \sum_{g} w_{ag} (1 - x_g)\Bigr)

    where :math:`x_g` is the fraction that group g keeps, and :math:`w_{ag}` the part of axis a
    that the group fills. So two groups that share a layer do not save the same work twice.

    Args:
        name: The name of the tensor.
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


def find_layers(
    module: nn.Module, example: Any, groups: Sequence[ChannelGroup]
) -> tuple[ChannelLayer, ...]:
    """Return the layers of a model that multiply, those without a group included.

    Args:
        module: The model; left as it is.
        example: The arguments of ``forward``.
        groups: The groups of channels.
    """
    with keep_generators(), torch.no_grad():
        work = count(copy_module(module).eval(), make_call(module, example)).work
    axes: dict[str, dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for group in groups:
        for place in group.places:
            is_filled = place.channel_of_index >= 0
            axes[place.name][place.axis][group.name] = float(is_filled.double().mean())
    sizes: dict[str, dict[str, int]] = defaultdict(dict)
    for raw, parameter in module.named_parameters():
        if parameter.ndim > 1:
            name = plain_name(raw)
            sizes[owner_of(name)][name] = parameter.numel()
    return tuple(
        ChannelLayer(
            name=name,
            work=work[owner].macs * size / sum(of_owner.values()),
            axes=tuple(axes[name].values()) if name in axes else (),
        )
        for owner, of_owner in sizes.items()
        if owner in work and work[owner].macs
        for name, size in of_owner.items()
    )
