"""Annotations and values in the words of an error."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, is_typeddict

_WORDS: dict[Any, tuple[str, str]] = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("True or False", "booleans"),
    str: ("a string", "strings"),
    Path: ("a path", "paths"),
    NoneType: ("None", "None"),
    Callable: ("a function", "functions"),
    tuple: ("a tuple", "tuples"),
    list: ("a list", "lists"),
    dict: ("a dict", "dicts"),
    Sequence: ("a sequence", "sequences"),
    Iterable: ("an iterable", "iterables"),
    Mapping: ("a mapping", "mappings"),
}
_LONGEST = 100  # characters of a value in an error


def list_alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the annotations that a union joins; an annotation without a union is alone.

    Examples:
        >>> list_alternatives(int | None)
        (<class 'int'>, <class 'NoneType'>)
    """
    if isinstance(hint, TypeVar):
        hint = Any if hint.__bound__ is None else hint.__bound__
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def find_kind(hint: Any) -> Any:
    """Return the kind of value that an annotation asks for; Any if no value can be refused.

    An `isinstance` check is not possible for some annotations, for example for a protocol. A
    restricted number or string, such as the ``PositiveInt`` of jsonargparse, has its own checks.
    """
    kind = get_origin(hint) or (NoneType if hint is None else hint)
    if kind in _WORDS or kind is Literal:
        return kind
    is_checkable = isinstance(kind, type) and not (
        is_typeddict(kind)
        or getattr(kind, "_is_protocol", False)
        or (issubclass(kind, int | float | str) and not issubclass(kind, Enum))
    )
    return kind if is_checkable else Any


def describe(hint: Any, *, many: bool = False) -> str:
    """Return an annotation in words.

    Args:
        hint: The annotation.
        many: Whether the words stand for several values.

    Examples:
        >>> describe(float | Mapping[str, float | None])
        'a number or a mapping of strings to numbers or None'
        >>> describe(tuple[int, int]), describe(tuple[float, ...] | None)
        ('a tuple of 2 whole numbers', 'a tuple of numbers or None')
    """
    return _join(_describe_alternative(each, many) for each in list_alternatives(hint))


def find_candidates(hint: Any) -> dict[str, type]:
    """Return the records that a value can be, by name: the dataclasses of and below a class."""
    kinds = {find_kind(alternative) for alternative in list_alternatives(hint)}
    found = {kind for base in kinds if isinstance(base, type) for kind in _descend(base)}
    return {kind.__name__: kind for kind in sorted(found, key=lambda kind: kind.__name__)}


def show(value: Any) -> str:
    """Return a value as a line for an error.

    Examples:
        >>> show("cosine"), show(int), show("x" * 200)[-7:]
        ("'cosine'", 'the class int', 'xxxx...')
    """
    if isinstance(value, type):
        return f"the class {value.__name__}"
    line = " ".join(repr(value).split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


def suggest(name: str, candidates: Iterable[str]) -> str:
    """Return the end of an error that names the closest of the right names; empty if none is close.

    Examples:
        >>> suggest("val_ac", ["val_acc", "val_loss"]), suggest("val_ac", ["loss"])
        ("; did you mean 'val_acc'?", '')
    """
    close = get_close_matches(name, list(candidates), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _join(words: Iterable[str]) -> str:
    *others, last = dict.fromkeys(words)
    return f"{', '.join(others)} or {last}" if others else last


def _describe_alternative(hint: Any, many: bool) -> str:
    kind, arguments = find_kind(hint), get_args(hint)
    if kind is Literal:
        return _join(map(repr, arguments))
    if kind is Any:
        return "values" if many else "a value"
    name = _WORDS[kind][many] if kind in _WORDS else _describe_class(kind, many)
    if kind in (dict, Mapping) and arguments:
        key, value = (describe(argument, many=True) for argument in arguments)
        return f"{name} of {key} to {value}"
    if kind in (tuple, list, Sequence, Iterable) and arguments:
        return f"{name} of {_describe_items(kind, arguments)}"
    return name


def _describe_items(kind: Any, arguments: tuple[Any, ...]) -> str:
    if kind is not tuple or arguments[-1] is Ellipsis:
        return describe(arguments[0], many=True)
    if len(set(arguments)) == 1:
        return f"{len(arguments)} {describe(arguments[0], many=True)}"
    return " and ".join(map(describe, arguments))


def _describe_class(kind: type, many: bool) -> str:
    if many:
        return f"{kind.__name__}s"
    article = "an" if kind.__name__[0] in "AEIOU" else "a"
    candidates = ", ".join(find_candidates(kind)) if inspect.isabstract(kind) else ""
    return f"{article} {kind.__name__}" + (f" ({candidates})" if candidates else "")


def _descend(base: type) -> Iterator[type]:
    """Yield the concrete dataclasses of and below a class."""
    if is_dataclass(base) and not inspect.isabstract(base):
        yield base
    if inspect.isabstract(base):
        children: list[type] = base.__subclasses__()
        for child in children:
            yield from _descend(child)
