"""Tests that import `lightning.pytorch`, run with the classes of `pytorch_lightning`."""

import sys
from importlib import import_module

import lightning

_NAMES = {"lightning.pytorch": "pytorch_lightning", "lightning.fabric": "lightning_fabric"}
_LATE = ("cli", "demos.boring_classes")  # rooms that the package does not import by itself


def redirect_imports() -> None:
    """Let each later import of `lightning.pytorch` give `pytorch_lightning`.

    `lightning_prune` imports both packages before that, as it does beside any Trainer.
    """
    import_module("lightning_prune.callbacks.namespace")
    for room in _LATE:
        import_module(f"pytorch_lightning.{room}")
    for name, other in _NAMES.items():
        for module in [each for each in sys.modules if f"{each}.".startswith(f"{name}.")]:
            del sys.modules[module]
        for module in [each for each in sys.modules if f"{each}.".startswith(f"{other}.")]:
            sys.modules[f"{name}{module.removeprefix(other)}"] = sys.modules[module]
        setattr(lightning, name.rpartition(".")[2], sys.modules[other])
