"""How much: the final sparsity of each parameter, by glob."""

import math
from collections.abc import Mapping

SparsityTargets = float | Mapping[str, float | None]

DEFAULT_SPARSITY = 0.9
"""The final sparsity where a user gives neither a sparsity nor a budget."""

UNCAPPED = math.nextafter(1.0, 0.0)
"""The most that a tensor may lose beside a budget: all atoms but one."""


def check_targets(
    sparsity: SparsityTargets | None,
    *,
    has_budget: bool = False,
    default: float = DEFAULT_SPARSITY,
) -> dict[str, float | None]:
    """Return the final sparsity by glob; beside a budget, the most that a tensor may lose.

    Args:
        sparsity: The answer of the user. None stands for the default; beside a budget, no tensor
            is capped then.
        has_budget: Whether a budget says how much. Then a glob that the user does not write, and
            ``*`` unless the user writes it, caps nothing.
        default: The sparsity of all tensors without an answer and a budget.

    Raises:
        ValueError: If a sparsity is not in [0, 1].
    """
    base: dict[str, float | None] = {"*": UNCAPPED} if has_budget else {}
    if sparsity is None:
        return base or {"*": default}
    if not isinstance(sparsity, Mapping):
        return {"*": _check_target(sparsity, f"sparsity={sparsity!r}")}
    if not sparsity:
        raise ValueError("need at least one glob, got sparsity={}")
    return base | {
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
    """Return targets as the lines of a config; a tensor without a cap needs no line.

    Examples:
        >>> print(format_targets({"*": 0.9, "head": None}))
        sparsity:
          "*": 0.9
          "head": null
    """
    return "sparsity:" + "".join(
        f'\n  "{glob}": {format_target(target)}'
        for glob, target in targets.items()
        if target != UNCAPPED
    )


def format_target(value: float | None) -> str:
    """Return a target as a config writes it."""
    if value == UNCAPPED:
        return "not capped"
    return "null" if value is None else str(value)
