"""How much: the final sparsity of each parameter, by glob."""

from collections.abc import Mapping

SparsityTargets = float | Mapping[str, float | None]


def check_targets(sparsity: SparsityTargets) -> dict[str, float | None]:
    """Return the final sparsity by glob.

    Raises:
        ValueError: If a sparsity is not in [0, 1].
    """
    if not isinstance(sparsity, Mapping):
        return {"*": _check_target(sparsity, f"sparsity={sparsity!r}")}
    if not sparsity:
        raise ValueError("need at least one glob, got sparsity={}")
    return {
        glob: None
        if target is None
        else _check_target(target, f"sparsity={{{glob!r}: {target!r}}}")
        for glob, target in sparsity.items()
    }


def _check_target(target: float, shown: str) -> float:
    if not 0 <= target <= 1:
        raise ValueError(f"need 0 <= sparsity <= 1, got {shown}")
    return float(target)


def format_targets(targets: Mapping[str, float | None]) -> str:
    """Return targets as the lines of a config.

    Examples:
        >>> print(format_targets({"*": 0.9, "head": None}))
        sparsity:
          "*": 0.9
          "head": null
    """
    return "sparsity:" + "".join(
        f'\n  "{glob}": {format_target(target)}' for glob, target in targets.items()
    )


def format_target(value: float | None) -> str:
    """Return a target as a config writes it."""
    return "null" if value is None else str(value)
