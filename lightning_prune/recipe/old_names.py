"""Attributes of answers that had another name in 0.1.0."""

from collections.abc import Mapping


def refuse_old_names(kind: type, new_names: Mapping[str, str]) -> None:
    """Raise TypeError if a user's class still defines an attribute under its old name.

    Args:
        kind: The class.
        new_names: The new name by the old one.
    """
    for old, new in new_names.items():
        if old in vars(kind):
            raise TypeError(f"need {new!r} in {kind.__name__}, got {old!r}; rename it to {new!r}")
