"""Answers as a config and a table show them."""

from abc import ABCMeta
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any


def describe_answer(value: Any) -> Any:
    """Return an answer as YAML writes it: a class as a path, a record as fields.

    Args:
        value: The answer, or a part of it.
    """
    if isinstance(value, Mapping):
        return {key: describe_answer(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [describe_answer(inner) for inner in value]
    if isinstance(type(value), ABCMeta):
        arguments = _describe_fields(value) if is_dataclass(value) else {}
        return {"class_path": _find_path(type(value)), "init_args": arguments}
    if is_dataclass(value):
        return _describe_fields(value)
    return value if isinstance(value, str | int | float | None) else str(value)


def _describe_fields(value: Any) -> dict[str, Any]:
    return {each.name: describe_answer(getattr(value, each.name)) for each in fields(value)}


def _find_path(kind: type) -> str:
    """Return the path from which users import a class; this package exports every answer."""
    package = "lightning_prune"
    is_ours = kind.__module__.startswith(f"{package}.")
    return f"{package if is_ours else kind.__module__}.{kind.__qualname__}"
