"""Checks of the fields of a record, and of the arguments of a function."""

import inspect
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from functools import wraps
from itertools import chain, repeat
from typing import Any, ParamSpec, TypeVar, get_type_hints

from lightning_prune.arguments.kinds import conform

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def check_fields(record: Any) -> None:
    """Check the fields of a dataclass against the annotations, and store numbers as plain numbers.

    Call it first in ``__post_init__``. The default of a field is not checked, and neither is an
    annotation that cannot be resolved.

    Raises:
        TypeError: If a value does not fit the annotation of the field.
        ValueError: If a field lists strings in a ``Literal``, and the value is another string.
    """
    hints = _resolve_hints(type(record))
    for field in fields(record):
        if field.init and (value := getattr(record, field.name)) is not field.default:
            plain = conform(field.name, value, hints.get(field.name, Any))
            object.__setattr__(record, field.name, plain)


def check_arguments(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Return the function with a check of the arguments against the annotations before each call.

    Args:
        function: A function or constructor. Arguments without annotation are not checked.
    """
    names = list(inspect.signature(function).parameters)

    @wraps(function)
    def check_and_call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        hints = get_type_hints(function)
        given = zip(chain(names, repeat("")), args, strict=False)
        plain = [conform(name, value, hints.get(name, Any)) for name, value in given]
        named = {name: conform(name, kwargs[name], hints.get(name, Any)) for name in kwargs}
        return function(*plain, **named)

    return check_and_call


def _resolve_hints(kind: type) -> dict[str, Any]:
    """Return the annotations of a class, or else of the nearest base whose names are known."""
    for base in kind.__mro__:
        with suppress(NameError, AttributeError):
            return get_type_hints(base)
    return {}
