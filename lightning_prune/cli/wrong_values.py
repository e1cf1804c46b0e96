"""Wrong values in a config, in the words of the errors of constructors."""

import ast
import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from itertools import takewhile
from typing import Any, get_type_hints

from lightning_prune.arguments.kinds import conform

_CLASS = re.compile(r"^( *)- Problem with given class_path '([\w.]+)':$")
_ARGUMENT = re.compile(r"^ *Parser key \"(\w+)\":$")
_VALUE = re.compile(r"(?:Got value|Given value|Expected a dot import path string): ?(.*)$")


def explain_wrong_values(message: str) -> Iterator[str]:
    """Yield a line for each argument of a class whose value has the wrong type.

    Args:
        message: The message of jsonargparse. It lists the errors of each class under the class,
            with more indentation, and shows each value as text.
    """
    lines = message.splitlines()
    for place, line in enumerate(lines):
        if found := _CLASS.match(line):
            depth, path = len(found[1]), found[2]
            inside = _take_inside(lines[place + 1 :], depth)
            if not any(map(_CLASS.match, inside)):  # Then a class inside explains the error.
                yield from _explain_argument(path, inside)


def _take_inside(lines: Sequence[str], depth: int) -> list[str]:
    """Return the first lines that are empty or have more indentation than ``depth``."""
    return list(takewhile(lambda line: not line or line[: depth + 1].isspace(), lines))


def _explain_argument(path: str, lines: Sequence[str]) -> Iterator[str]:
    name = next((found[1] for line in lines if (found := _ARGUMENT.match(line))), None)
    values = [found[1] for line in lines if (found := _VALUE.search(line))]
    if name is None or not values:
        return
    with suppress(ImportError, AttributeError, NameError):
        hint = _find_hint(path, name)
        try:
            conform(name, _read(values[-1]), hint)
        except (TypeError, ValueError) as error:
            yield f"wrong argument '{name}' of {path}: {error}"


def _read(text: str) -> Any:
    """Return the value that a text shows, or else the text."""
    with suppress(ValueError, SyntaxError):
        return ast.literal_eval(text)
    return text


def _find_hint(path: str, name: str) -> Any:
    """Return the annotation of a constructor's argument, which may be an argument of a base."""
    module, _, kind = path.rpartition(".")
    for base in getattr(import_module(module), kind).__mro__:
        if name in inspect.signature(base.__init__).parameters:
            return get_type_hints(base.__init__).get(name, Any)
    return Any
