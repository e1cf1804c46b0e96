"""The machine, tables, and files of runs."""

import contextlib
import csv
import importlib.metadata
import io
import logging
import os
import platform
import re
import typing
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def describe_machine(*packages: str) -> str:
    """Return the versions of the installed packages, and the processor.

    Args:
        packages: Further packages beside torch, Lightning and this package.
    """
    info = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    versions = []
    for package in sorted({"torch", "lightning", "lightning-prune", *packages}):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{package} {importlib.metadata.version(package)}")
    return (
        f"Python {platform.python_version()}, {', '.join(versions)}; "
        f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores, 1 thread"
    )


def silence_libraries() -> None:
    """Hide warnings and the messages of all loggers, but for errors."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


def hide_output() -> contextlib.AbstractContextManager[Any]:
    """Return a context that drops everything printed, as the tables of the callback."""
    return contextlib.redirect_stdout(io.StringIO())


def list_points(points: Iterable[float]) -> str:
    """Return the accuracy of each seed, in points.

    Examples:
        >>> list_points([98.056, 97.5])
        '98.06, 97.50'
    """
    return ", ".join(f"{value:.2f}" for value in points)


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table with lines, as wide as the terminal; into a file, as Markdown."""
    console = Console()
    if not console.is_terminal:
        print(write_markdown_header(*headings))
        for row in rows:
            print(write_markdown_row(*row))
        return
    table = Table(*headings)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def write_markdown_header(*headings: str) -> str:
    """Return the first two lines of a Markdown table.

    Examples:
        >>> print(write_markdown_header("", "ms"))
        | | ms |
        |---|---|
    """
    return f"{write_markdown_row(*headings)}\n|{'---|' * len(headings)}"


def write_markdown_row(*cells: object) -> str:
    """Return a row of a Markdown table.

    Examples:
        >>> write_markdown_row("AdamW", 167, "")
        '| AdamW | 167 | |'
    """
    return "|" + "".join(f" {cell} |" if cell != "" else " |" for cell in cells)


def read_runs(path: Path, kind: type[Any]) -> list[Any]:
    """Return the runs that a file holds; a file that does not exist holds none.

    Args:
        path: The file, as `append_run` writes it.
        kind: The ``NamedTuple`` of a run, with a type for each column.
    """
    if not path.exists():
        return []
    types = typing.get_type_hints(kind).values()
    with path.open(newline="") as file:
        return [
            kind(*(convert(cell) for convert, cell in zip(types, row, strict=True)))
            for row in list(csv.reader(file))[1:]
        ]


def append_run(path: Path, run: Any) -> None:
    """Write a run at once, so that an interrupted benchmark continues where it stopped."""
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        csv.writer(file).writerows([run._fields, run] if is_new else [run])
