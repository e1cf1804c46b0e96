"""Which values fit an annotation."""

import ast
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from itertools import repeat
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, get_args

from lightning_prune.arguments.words import (
    describe,
    find_candidates,
    find_kind,
    list_alternatives,
    show,
)

_WORDS_OF_YAML = {"": None, "null": None, "none": None, "true": True, "false": False}
_LARGEST = 1000  # bytes of an array that a remedy writes out


def conform(name: str, value: Any, hint: Any) -> Any:
    """Return a value that fits an annotation, as plain numbers, strings, tuples and dicts.

    A float may be any real number, and an int any whole number: numbers of NumPy become numbers of
    Python. A bool is no number, and a tensor is no number. Any sequence may stand for a tuple or a
    list. Some annotations cannot be checked: then each value fits.

    Args:
        name: Name of the argument, for the error.
        value: The value.
        hint: The annotation.

    Raises:
        TypeError: If the value does not fit. The error names the argument, the value and a remedy.
        ValueError: If the value is a string, and the annotation lists other strings.

    Examples:
        >>> conform("milestones", [1, 2], tuple[float, ...])
        (1, 2)
        >>> conform("n", 2.0, int)
        Traceback (most recent call last):
        TypeError: need n as a whole number, got n=2.0; write n=2
    """
    try:
        return _conform(name, value, hint)
    except _MisfitError as misfit:
        name, value, hint = misfit.args
    is_word = find_kind(hint) is Literal and isinstance(value, str)
    got = show(value) if isinstance(value, type) else f"{name}={show(value)}"
    remedy = _suggest(value, hint)
    raise (ValueError if is_word else TypeError)(
        f"need {name} as {describe(hint)}, got {got}"
        + (f"; write {name}={remedy}" if remedy else "")
    )


class _MisfitError(Exception):
    """A name, a value and the annotation that the value does not fit."""


def _conform(name: str, value: Any, hint: Any) -> Any:
    for alternative in list_alternatives(hint):
        kind, arguments = find_kind(alternative), get_args(alternative)
        if not _is_of(kind, value, arguments):
            continue
        if kind is Literal:
            return next(word for word in arguments if value == word)
        if kind in (int, float):
            return int(value) if isinstance(value, Integral) else float(value)
        if kind is str:
            return str.__str__(value)
        if kind in (dict, Mapping) and arguments:
            return _conform_mapping(name, value, alternative)
        if kind in (tuple, list, Sequence, Iterable) and arguments:
            return _conform_items(name, value, kind, arguments)
        return value
    raise _MisfitError(name, value, hint)


def _conform_mapping(name: str, value: Mapping[Any, Any], hint: Any) -> dict[Any, Any]:
    of_keys, of_values = get_args(hint)
    try:
        keys = [_conform(name, key, of_keys) for key in value]
    except _MisfitError:
        raise _MisfitError(name, value, hint) from None
    items = [_conform(f"{name}[{key!r}]", item, of_values) for key, item in value.items()]
    return dict(zip(keys, items, strict=True))


def _conform_items(name: str, value: Any, kind: Any, arguments: tuple[Any, ...]) -> Any:
    if kind is Iterable and not isinstance(value, list | tuple):
        return value  # It can perhaps be read only once.
    hints = arguments if kind is tuple and arguments[-1] is not Ellipsis else repeat(arguments[0])
    items = [
        _conform(f"{name}[{index}]", item, hint)
        for index, (item, hint) in enumerate(zip(value, hints, strict=False))
    ]
    return tuple(items) if kind is tuple else items


def _is_of(kind: Any, value: Any, arguments: tuple[Any, ...]) -> bool:
    """Whether a value is of a kind, apart from the items that it holds."""
    if kind is Literal:
        return any(isinstance(value, type(word)) and value == word for word in arguments)
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        return _is_sequence(value) and len(value) == len(arguments)
    if kind in _TESTS:
        return _TESTS[kind](value)
    return isinstance(getattr(value, "_orig_mod", value), kind)  # of a compiled module


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    with suppress(OverflowError):  # of a whole number that no float can hold
        float(value)
        return True
    return False


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


_TESTS: dict[Any, Callable[[Any], bool]] = {
    Any: lambda value: True,
    int: lambda value: isinstance(value, Integral) and not isinstance(value, bool),
    float: _is_number,
    Path: lambda value: isinstance(value, os.PathLike),
    tuple: _is_sequence,
    list: _is_sequence,
    Sequence: _is_sequence,
    Iterable: lambda value: (
        isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)
    ),
    dict: lambda value: isinstance(value, Mapping),
}


def _suggest(value: Any, hint: Any) -> str:
    """Return the code of a value that fits and that the user may have meant; empty for none."""
    candidates = find_candidates(hint)
    if value is True and len(candidates) == 1:
        return f"{next(iter(candidates))}()"
    if isinstance(value, type):
        return f"{value.__name__}()" if value in candidates.values() else ""
    if isinstance(value, str):
        words = [word for word in get_args(hint) if isinstance(word, str)]
        if close := _find_close(value, list(candidates)):
            return f"{close}()"
        if close := _find_close(value, words):
            return repr(close)
    for guess in _guess(value):
        with suppress(_MisfitError):
            return show(_conform("", guess, hint))
    return ""


def _find_close(word: str, words: Sequence[str]) -> str:
    """Return the word that starts as another word, or else is spelled alike; empty for none."""
    letters = "".join(filter(str.isalnum, word)).lower()
    alike = [each for each in words if letters and each.lower().startswith(letters)]
    return next(iter([*alike, *get_close_matches(word, words, n=1)]), "")


def _guess(value: Any) -> Iterator[Any]:
    """Yield the values that a user may have meant."""
    if isinstance(value, str):
        with suppress(Exception):  # of text that is no value
            yield ast.literal_eval(value)
        if value.lower() in _WORDS_OF_YAML:
            yield _WORDS_OF_YAML[value.lower()]
    elif isinstance(value, Mapping):
        yield {str(key): item for key, item in value.items()}
    elif getattr(value, "nbytes", _LARGEST) < _LARGEST:
        with suppress(Exception):  # of a tensor without data
            yield value.tolist()
    elif isinstance(value, Real) and value in (0, 1):
        yield bool(value)
    if isinstance(value, float) and value.is_integer():
        yield int(value)
    if value is False:
        yield None
    yield (value,)
