"""Wrappers that other libraries put around optimizers and models, recognized without an import.

A wrapper shares the parameters of the object inside, but not the hooks: the optimizer inside calls
these. Names of parameters are those of the model inside.
"""

from typing import Any

from torch import nn
from torch.optim import Optimizer

_OPTIMIZERS = {
    "AcceleratedOptimizer": "optimizer",  # Accelerate, and so the Trainer of transformers
    "_FabricOptimizer": "optimizer",
    "LightningOptimizer": "optimizer",
    "Lookahead": "_base_optimizer",  # timm
}
"""The attribute that holds the optimizer inside, by the name of the class of the wrapper."""

_MODELS = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "_FabricModule": "module",
    "AveragedModel": "module",
    "ModelEmaV3": "module",  # timm
}
"""The attribute that holds the model inside, by the name of the class of the wrapper."""


def list_layers(optimizer: Optimizer) -> list[Optimizer]:
    """Return a wrapper, the wrappers inside of it, and the optimizer in the middle."""
    layers = [optimizer]
    while (inside := _look_inside(layers[-1], _OPTIMIZERS)) is not None:
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
    return list_layers(optimizer)[-1]


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the model inside of all wrappers.

    Examples:
        >>> net = nn.Linear(2, 2)
        >>> unwrap_model(nn.DataParallel(net)) is net
        True
    """
    while (inside := _look_inside(model, _MODELS)) is not None:
        model = inside
    return model


def _look_inside(wrapper: object, attributes: dict[str, str]) -> Any:
    """Return the object inside of a wrapper; None if it is no wrapper."""
    for kind in type(wrapper).__mro__:
        if kind.__name__ in attributes:
            return getattr(wrapper, attributes[kind.__name__], None)
    return None
