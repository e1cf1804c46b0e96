"""Lightning under both of its names: no other file imports Lightning.

``lightning.pytorch`` and ``pytorch_lightning`` contain the same code, but different classes. Our
callbacks inherit from the classes of both, so that both Trainers accept them. Objects of Lightning
are recognized by the names of their classes. So the order of imports does not matter. Importing the
second package takes 0.2 s, since torch and torchmetrics are loaded already.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, reduce
from importlib import import_module
from operator import or_
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypeVar

_NAMES = ("lightning.pytorch", "pytorch_lightning")

LIGHTNING = frozenset({"lightning", "lightning_fabric", "pytorch_lightning"})  # top packages
LOGGERS = (*_NAMES, "lightning.fabric", "lightning_fabric")

Part = TypeVar("Part")


def _import_packages() -> tuple[ModuleType, ...]:
    """Import both packages, first the package in use.

    A package that cannot be imported counts as absent: no Trainer can come from it.

    Raises:
        ImportError: If neither can be imported.
    """
    found: dict[str, ModuleType] = {}
    errors: list[Exception] = []
    for name in sorted(_NAMES, key=lambda name: name not in sys.modules):
        with _keep_messages() if found else nullcontext():
            package = _import(name, errors)
        if package is not None:
            found[name] = package
    if not found:
        raise ImportError(
            f"need lightning or pytorch_lightning, got neither: {errors[0]}; pip install lightning"
        ) from errors[0]
    return tuple(found[name] for name in _NAMES if name in found)


def _import(name: str, errors: list[Exception]) -> ModuleType | None:
    try:
        return import_module(name)
    except Exception as error:
        errors.append(error)
        return None


@contextmanager
def _keep_messages() -> Iterator[None]:
    """Keep the logger of Lightning's messages; importing the second package replaces it."""
    shared = vars(import_module("lightning_utilities.core.rank_zero"))
    kept = dict(shared)
    try:
        yield
    finally:
        shared.update(kept)


PACKAGES = _import_packages()

if TYPE_CHECKING:
    import lightning.pytorch as lightning
    import pytorch_lightning
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.cli import (
        LightningArgumentParser as ParserBase,
        LightningCLI as CommandBase,
    )
    from lightning.pytorch.trainer import Trainer as TrainerBase
    from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
    from pytorch_lightning.callbacks import Checkpoint

    Trainer: TypeAlias = lightning.Trainer | pytorch_lightning.Trainer
    LightningModule: TypeAlias = lightning.LightningModule | pytorch_lightning.LightningModule
    LightningDataModule: TypeAlias = (
        lightning.LightningDataModule | pytorch_lightning.LightningDataModule
    )

    class LightningCallback(lightning.Callback, pytorch_lightning.Callback):  # type: ignore[misc]
        """A callback to the Trainers of both packages."""

    class LightningCheckpoint(ModelCheckpoint, Checkpoint):  # type: ignore[misc]
        """A `ModelCheckpoint` to the Trainers of both packages."""

        # Each takes a Trainer and a module of either package.
        setup: ClassVar[Any]
        on_train_start: ClassVar[Any]
        on_train_end: ClassVar[Any]
        on_validation_end: ClassVar[Any]
        _save_topk_checkpoint: ClassVar[Any]

else:
    Trainer = reduce(or_, (package.Trainer for package in PACKAGES))
    LightningModule = reduce(or_, (package.LightningModule for package in PACKAGES))
    LightningDataModule = reduce(or_, (package.LightningDataModule for package in PACKAGES))
    # A part of a class; `join` gives it the base of either package.
    ParserBase = CommandBase = TrainerBase = object

    _rooms = [import_module(f"{package.__name__}.callbacks") for package in PACKAGES]
    _kinds = tuple(package.Callback for package in PACKAGES)
    # `Checkpoint` defines nothing, but the Trainer of its package looks for it.
    _checkpoints = (_rooms[0].ModelCheckpoint, *(room.Checkpoint for room in _rooms[1:]))
    LightningCallback = type("LightningCallback", _kinds, {"__module__": __name__})
    LightningCheckpoint = type("LightningCheckpoint", _checkpoints, {"__module__": __name__})

    _utilities = import_module(f"{PACKAGES[0].__name__}.utilities")
    rank_zero_info, rank_zero_warn = _utilities.rank_zero_info, _utilities.rank_zero_warn

__all__ = [
    "LIGHTNING",
    "LOGGERS",
    "PACKAGES",
    "CommandBase",
    "LightningCallback",
    "LightningCheckpoint",
    "LightningDataModule",
    "LightningModule",
    "ParserBase",
    "Trainer",
    "TrainerBase",
    "comes_from",
    "find_package",
    "import_beside",
    "is_lightning",
    "is_overridden",
    "join",
    "rank_zero_info",
    "rank_zero_warn",
    "refuse_mixed",
]


def join(part: type[Part], base: type) -> type[Part]:
    """Return the class of ours with a class of either package as the base.

    Args:
        part: The class, with `ParserBase`, `CommandBase` or `TrainerBase` as the base.
        base: The class of Lightning.
    """
    return type(part.__name__, (part, base), {"__module__": __name__, "__doc__": part.__doc__})


def is_lightning(value: object, *names: str) -> bool:
    """Whether a value is of a class of Lightning, from either package.

    Args:
        value: Any value.
        *names: Names of classes, such as ``"TensorBoardLogger"``.
    """
    kind: Any = type(value)
    return any(_has_base(kind, name) for name in names)


@cache
def _has_base(kind: type[Any], name: str) -> bool:
    return any(
        base.__name__ == name and base.__module__.partition(".")[0] in LIGHTNING
        for base in kind.__mro__
    )


def find_package(value: object) -> ModuleType:
    """Return the package of a Trainer, a module or data, or of a class of these.

    Raises:
        TypeError: If the value comes from neither package.
    """
    kind = _find_class(value)
    for package in PACKAGES:
        if comes_from(package, kind):
            return package
    raise TypeError(f"need an object of Lightning, got {kind.__name__}")


def comes_from(package: ModuleType, kind: type) -> bool:
    """Whether a class is a class of a package, or inherits from one."""
    return any(base.__module__.startswith(f"{package.__name__}.") for base in kind.__mro__)


def _find_class(value: object) -> type:
    whole = getattr(value, "_orig_mod", value)  # of a compiled module
    return whole if isinstance(whole, type) else type(whole)


def import_beside(value: object, room: str) -> Any:
    """Return a module of Lightning, from the same package as a value.

    Args:
        value: A Trainer, a module or data.
        room: Name inside of the package, such as ``"loggers.logger"``.
    """
    return import_module(f"{find_package(value).__name__}.{room}")


def is_overridden(name: str, instance: LightningModule | LightningDataModule) -> bool:
    """Whether a module or data define a method of Lightning, such as ``train_dataloader``."""
    helpers = import_beside(instance, "utilities.model_helpers")
    return bool(helpers.is_overridden(name, instance))


def refuse_mixed(
    trainer: Trainer, model: LightningModule, datamodule: LightningDataModule | None = None
) -> None:
    """Raise TypeError if a module or data come from another package than the Trainer."""
    package = find_package(trainer).__name__
    for each in (model, datamodule):
        if each is not None and (other := find_package(each).__name__) != package:
            kind = _find_class(each).__name__
            raise TypeError(
                f"need module and data of {package}, as the Trainer is, got {kind} of {other}; "
                f"import Trainer from {other}, or let {kind} inherit from {package}"
            )
