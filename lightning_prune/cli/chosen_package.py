"""Which package of Lightning a command runs in: the package of the model's class."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import yaml

from lightning_prune.callbacks.namespace import PACKAGES


def choose_package(arguments: Sequence[str]) -> ModuleType:
    """Return the package of the model that a command line names.

    Lightning's parser comes from this package, too. So callbacks, loggers and data have the same
    kind as the model. Where no model is found, the first package reports the error.

    Args:
        arguments: The arguments of the command.
    """
    names = [name for name in _list_models(arguments) if "." in name]
    for name in reversed(names):  # The last value of an option wins.
        if (package := _find_package_of_class(name)) is not None:
            return package
    return PACKAGES[0]


def _find_package_of_class(path: str) -> ModuleType | None:
    """Return the package of a module's class, or of the class that a function returns.

    Returns None if the name leads to neither.
    """
    room, _, name = path.rpartition(".")
    with suppress(Exception):  # The command will fail at the same import, and say why.
        found = getattr(import_module(room), name)
        kind = found if isinstance(found, type) else get_type_hints(found)["return"]
        return next(package for package in PACKAGES if issubclass(kind, package.LightningModule))
    return None


def _list_models(arguments: Sequence[str]) -> Iterator[str]:
    """Yield the class of the model in each config and option, in their order."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for option in ("--config", "--model", "--model.class_path"):
        parser.add_argument(option, dest="given", action=_Pair)
    parser.add_argument("-c", dest="given", action=_Pair)
    with suppress(argparse.ArgumentError):
        given = parser.parse_known_args(arguments)[0].given or []
        for option, value in given:
            is_config = option in ("-c", "--config")
            yield from _find_in_config(_read(value)) if is_config else _find_class(value)


class _Pair(argparse.Action):
    """Keeps an option together with the value."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        namespace.given = [*(namespace.given or []), (option, values)]


def _read(text: str) -> Any:
    """Return the content of a YAML file, or of a text."""
    with suppress(OSError, ValueError, yaml.YAMLError):
        return yaml.safe_load(Path(text).read_text() if Path(text).is_file() else text)
    return None


def _find_in_config(config: Any) -> Iterator[str]:
    """Yield the class of a config's model, and those of the subcommands in it."""
    for key, value in config.items() if isinstance(config, dict) else ():
        if key == "model":
            yield from _find_class(value)
        elif isinstance(value, dict) and "model" in value:
            yield from _find_in_config(value)


def _find_class(value: Any) -> Iterator[str]:
    """Yield the class in a model's value: an import path, a mapping, or a file with either."""
    if isinstance(value, str):
        content = _read(value)
        if content == value:
            yield value
        else:
            yield from _find_class(content)
    elif isinstance(value, dict) and isinstance(value.get("class_path"), str):
        yield value["class_path"]
