"""What is said of a run in words: what is pruned, how far, and what stays dense and why."""

from collections import defaultdict
from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lightning_prune.engine.pruner import Pruner

_TENSOR_COLUMNS = ("tensor", "shape", "weights", "kept", "sparsity", "final")
_CHANNEL_COLUMNS = ("channels of", "tensors", "channels", "kept", "sparsity", "final")
_LISTED_NAMES = 6


def pruning_table(pruner: Pruner, title: str) -> RenderableType:
    """Return the state of every tensor or group of channels, and below it what stays dense."""
    table = Table(title=title, title_justify="left")
    for column in _columns(pruner):
        left = column in ("tensor", "shape", "channels of")
        table.add_column(column, justify="left" if left else "right")
    rows = pruning_rows(pruner)
    for row in rows[:-1]:
        table.add_row(*row)
    table.add_section()
    table.add_row(*rows[-1], style="bold")
    notes = [
        f"dense ({reason}): {', '.join(names)}"
        for reason, names in _dense_by_reason(pruner).items()
    ]
    if pruner.recipe.pattern.couples_tensors and pruner.parameter_sparsity:
        notes.insert(
            0,
            f"removing the pruned channels takes away {pruner.parameter_sparsity:.4f} of all "
            "parameters",
        )
    return Group(table, *(Text(note, style="dim") for note in notes))


def pruning_markdown(pruner: Pruner) -> str:
    """Return the same as a Markdown table, for TensorBoard's text page."""
    columns = _columns(pruner)
    rows = [columns, ("---",) * len(columns), *pruning_rows(pruner)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def pruning_rows(pruner: Pruner) -> list[tuple[str, ...]]:
    """Return one row of text a tensor or group, and a last one for all of them together."""
    coupled = pruner.recipe.pattern.couples_tensors
    rows: list[tuple[str, ...]] = []
    for group in pruner.groups:
        shape = " x ".join(map(str, group.members[0].parameter.shape))
        final = pruner.plan[group.name]
        rows.append(
            (
                group.name,
                str(len(group.members)) if coupled else shape,
                f"{group.size:,}",
                f"{group.kept:,}",
                f"{1 - group.kept / group.size:.4f}",
                "pooled" if final is None else f"{final:.4f}",
            )
        )
    size, kept = (sum(getattr(group, name) for group in pruner.groups) for name in ("size", "kept"))
    tensors = str(len(pruner.tensors)) if coupled else ""
    reached, planned_for_all = f"{pruner.sparsity:.4f}", f"{_planned_for_all(pruner):.4f}"
    rows.append(("all", tensors, f"{size:,}", f"{kept:,}", reached, planned_for_all))
    return rows


def _columns(pruner: Pruner) -> tuple[str, ...]:
    return _CHANNEL_COLUMNS if pruner.recipe.pattern.couples_tensors else _TENSOR_COLUMNS


def _planned_for_all(pruner: Pruner) -> float:
    """Return the final sparsity: of channels what rounding leaves of it, where that is known."""
    planned = [pruner.plan[group.name] for group in pruner.groups]
    if not pruner.recipe.pattern.couples_tensors or not planned or None in planned:
        return pruner.final_sparsity
    pruned = sum(
        group.size * final for group, final in zip(pruner.groups, planned, strict=True) if final
    )
    return pruned / sum(group.size for group in pruner.groups)


def change_table(before: Mapping[str, float], after: Mapping[str, float], label: str) -> Table:
    """Return the metrics of a validation before and after, side by side, for a terminal.

    Args:
        before: By metric.
        after: By metric.
        label: What is said of ``after``.
    """
    table = Table(title="Validated before and after", title_justify="left")
    table.add_column("metric")
    for column in ("before", label, "change"):
        table.add_column(column, justify="right")
    for name, value in before.items():
        changed = after.get(name, float("nan"))
        table.add_row(name, f"{value:.4f}", f"{changed:.4f}", f"{changed - value:+.4f}")
    return table


def _dense_by_reason(pruner: Pruner) -> dict[str, list[str]]:
    by_reason = defaultdict(list)
    for name, reason in pruner.dense.items():
        by_reason[reason].append(name)
    for names in by_reason.values():
        if len(names) > _LISTED_NAMES:
            names[_LISTED_NAMES:] = [f"and {len(names) - _LISTED_NAMES} more"]
    return by_reason
