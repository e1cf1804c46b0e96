"""What is said of a run in words: what is pruned, how far, and what stays dense and why."""

from collections import defaultdict
from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lightning_prune.pruner import Pruner

_COLUMNS = ("tensor", "shape", "weights", "kept", "sparsity", "final")
_LISTED_NAMES = 6


def pruning_table(pruner: Pruner, title: str) -> RenderableType:
    """Return the state of every tensor, and below it what stays dense, for a terminal."""
    table = Table(title=title, title_justify="left")
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column in ("tensor", "shape") else "right")
    rows = pruning_rows(pruner)
    for row in rows[:-1]:
        table.add_row(*row)
    table.add_section()
    table.add_row(*rows[-1], style="bold")
    dense = [
        Text(f"dense ({reason}): {', '.join(names)}", style="dim")
        for reason, names in _dense_by_reason(pruner).items()
    ]
    return Group(table, *dense)


def pruning_markdown(pruner: Pruner) -> str:
    """Return the same as a Markdown table, for TensorBoard's text page."""
    rows = [_COLUMNS, ("---",) * len(_COLUMNS), *pruning_rows(pruner)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def pruning_rows(pruner: Pruner) -> list[tuple[str, ...]]:
    """Return one row of text a tensor and a last one for all of them together."""
    rows: list[tuple[str, ...]] = []
    for tensor in pruner.tensors:
        final = pruner.plan[tensor.name]
        rows.append(
            (
                tensor.name,
                " x ".join(map(str, tensor.parameter.shape)),
                f"{tensor.total:,}",
                f"{tensor.kept:,}",
                f"{1 - tensor.kept / tensor.total:.4f}",
                "pooled" if final is None else f"{final:.4f}",
            )
        )
    total, kept = (sum(getattr(t, name) for t in pruner.tensors) for name in ("total", "kept"))
    reached, planned_for_all = f"{pruner.sparsity:.4f}", f"{pruner.final_sparsity:.4f}"
    rows.append(("all", "", f"{total:,}", f"{kept:,}", reached, planned_for_all))
    return rows


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
