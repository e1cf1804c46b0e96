"""Prune any LightningModule gradually while it trains."""

import sys

import lazy_loader

__version__ = "0.2.0"

_import_lazily, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

_CURES = {
    "Group": "read Pruner.groups, and annotate them with typing.Any",
    "ChannelGroup": "read Pruner.groups, and annotate them with typing.Any",
}
_FORMER_ROOMS = {
    *("allocations", "criteria", "entries", "export", "groups", "metrics", "oneshot", "patterns"),
    *("pruner", "regrowth", "schedules", "selection", "sensitivity", "shrinking", "sparse_file"),
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first read: importing all would import torch and Lightning.

    Raises:
        ImportError: If the name was public before; the message says how to do without it.
    """
    if name in _CURES:
        raise ImportError(f"need a public name of lightning_prune, got {name!r}; {_CURES[name]}")
    if name in _FORMER_ROOMS:
        raise _missing_room(name)
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _import_lazily(name)


def _missing_room(name: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f"need a public name of lightning_prune, got its former module '{name}'; import the name "
        "from lightning_prune itself, also in a class_path",
        name=f"{__name__}.{name}",
    )


class _FormerRooms:
    """Tells whoever imports a module of 0.1.0 from where its public names come now."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        """Raise ModuleNotFoundError for such a module; find nothing else."""
        package, _, room = name.partition(".")
        if package == __name__ and room in _FORMER_ROOMS:
            raise _missing_room(room)


sys.meta_path.append(_FormerRooms)
