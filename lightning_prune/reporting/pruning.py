"""The state of a `Pruner` in a terminal, and a validation before and after, as a table."""

from collections.abc import Mapping
from typing import Literal

from rich.console import Console

from lightning_prune.engine.overview import pruning_table
from lightning_prune.engine.pruner import Pruner
from lightning_prune.tables.table import Cell, Column, Table

TableSize = Literal["full", "short", "off"]
"""How much of a table is printed."""


def print_pruning_table(pruner: Pruner, title: str, size: TableSize, *, is_first: bool) -> None:
    """Print the table of a pruner in the terminal; all processes call this at the same time.

    Args:
        pruner: An attached engine.
        title: The line above the table.
        size: ``"full"`` for a row for each tensor or group of channels. ``"short"`` for at most 30
            lines: tensors whose names differ in numbers only share a row. ``"off"`` for nothing.
        is_first: Whether this is the process that prints.
    """
    if size != "off":
        table = pruning_table(pruner, title, is_short=size == "short")  # counted on all processes
        if is_first:
            Console().print(table)


def change_table(before: Mapping[str, float], after: Mapping[str, float], label: str) -> Table:
    """Return the metrics of two validations side by side.

    Args:
        before: The metrics of the first validation, by name.
        after: The metrics of the second validation, by name.
        label: The heading above the metrics of the second validation.
    """
    headings = ("before", label, "change")
    rows: list[list[Cell]] = []
    for name, value in before.items():
        changed = after.get(name, float("nan"))
        rows.append([name, f"{value:.4f}", f"{changed:.4f}", f"{changed - value:+.4f}"])
    return Table(
        title="Validated before and after",
        columns=[
            Column(heading="metric", align="left"),
            *(Column(heading=heading) for heading in headings),
        ],
        rows=rows,
    )
