"""Wrappers that other libraries put around optimizers and models, recognized without an import.

A wrapper shares the parameters of the object inside, but not the hooks: the optimizer inside calls
these. Names of parameters are those of the model inside.
"""

from collections.abc import Hashable
from functools import cache
from typing import Any, cast

from torch import nn
from torch.optim import Optimizer

_ATTRIBUTES = {
    "AcceleratedOptimizer": "optimizer",  # Accelerate, and so the Trainer of transformers
    "_FabricOptimizer": "optimizer",
    "LightningOptimizer": "optimizer",
    "Lookahead": "_base_optimizer",  # timm
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "_FabricModule": "module",
    "AveragedModel": "module",
    "ModelEmaV3": "module",  # timm
}
"""The attribute that holds the optimizer or model inside, by the name of the wrapper's class."""


def list_layers(optimizer: Optimizer) -> list[Optimizer]:
    """Return a wrapper, the wrappers inside of it, and the optimizer in the middle."""
    layers = [optimizer]
    while (inside := _look_inside(layers[-1])) is not None:
        layers.append(inside)
    return layers


def unwrap_optimizer(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer inside of all wrappers.

    Examples:
        >>> import torch
        >>> adam = torch.optim.Adam([torch.zeros(1)])
        >>> unwrap_optimizer(adam) is adam
        True
    """
    while (inside := _look_inside(optimizer)) is not None:
        optimizer = inside
    return optimizer


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the model inside of all wrappers.

    Examples:
        >>> net = nn.Linear(2, 2)
        >>> unwrap_model(nn.DataParallel(net)) is net
        True
    """
    while (inside := _look_inside(model)) is not None:
        model = inside
    return model


def _look_inside(wrapper: Any) -> Any:
    """Return the object inside of a wrapper; None if it is no wrapper."""
    attribute = _find_attribute(cast(Hashable, type(wrapper)))
    return None if attribute is None else getattr(wrapper, attribute, None)


@cache
def _find_attribute(kind: Any) -> str | None:
    """Return the attribute that holds the object inside; None if the class is no wrapper."""
    names = (base.__name__ for base in kind.__mro__)
    return next((_ATTRIBUTES[name] for name in names if name in _ATTRIBUTES), None)
