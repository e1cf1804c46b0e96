"""Prune any LightningModule gradually while it trains."""

from typing import Any

import lazy_loader

__version__ = "0.1.0"

_import_lazily, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

_CURES = {
    "Group": "read Pruner.groups, and annotate them with typing.Any",
    "ChannelGroup": "read Pruner.groups, and annotate them with typing.Any",
    "metrics": "write lightning_prune.sparsity and lightning_prune.Sparsity",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first read: importing all would import torch and Lightning.

    Raises:
        ImportError: If the name was public before; the message says how to do without it.
    """
    if name in _CURES:
        raise ImportError(f"need a public name of lightning_prune, got {name!r}; {_CURES[name]}")
    return _import_lazily(name)
