"""The hooks that are registered on modules and optimizers."""

from typing import Any

from torch import nn
from torch.optim import Optimizer


def registered(*owners: nn.Module | Optimizer) -> list[Any]:
    """Return all hooks of modules, with those inside them, and of optimizers, and their flags."""
    parts: list[Any] = []
    for owner in owners:
        parts += owner.modules() if isinstance(owner, nn.Module) else [owner]
    places = [vars(part)[name] for part in parts for name in vars(part) if "hooks" in name]
    return [entry for place in places if isinstance(place, dict) for entry in place.values()]


def hooks(*owners: nn.Module | Optimizer) -> list[Any]:
    """Return all hooks of modules, with those inside them, and of optimizers."""
    return [entry for entry in registered(*owners) if callable(entry)]
