"""A table, printed in a terminal, as HTML, as Markdown, or as CSV."""

import csv
import io
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table as Grid
from rich.text import Text

from lightning_prune.tables.html import write_element

Cell = str | int | float | Text

_UNLIMITED = 1_000_000  # columns of text: no Markdown row wraps
_SCROLLED = 20  # rows above which HTML scrolls


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a `Table`.

    Args:
        heading: The text above the cells.
        align: ``"left"`` for text, ``"right"`` for numbers.
    """

    heading: str
    align: Literal["left", "right"] = "right"


@dataclass(frozen=True, kw_only=True)
class Table:
    r"""A table of text and numbers; rich prints it in a terminal, and a notebook shows it.

    Args:
        title: The line above the table in a terminal and in a notebook.
        columns: The columns, from left to right.
        rows: The cells of each row. A `rich.text.Text` carries a style for the terminal.
        has_total: Whether the last row sums up the others.
        notes: The lines below the table in a terminal and in a notebook.
        most_lines: The largest number of lines in a terminal, notes included; None for no limit.
            The last rows before the total make room, and a row says how many they are.

    Examples:
        >>> table = Table(
        ...     columns=(Column(heading="layer", align="left"), Column(heading="zeros")),
        ...     rows=(("a|b", 12), ("all", 12)),
        ...     has_total=True,
        ... )
        >>> print(table.to_markdown())
        | layer | zeros |
        |-------|------:|
        | a\|b  |    12 |
        | all   |    12 |
        >>> print(table.to_csv(), end="")
        layer,zeros
        a|b,12
        all,12
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    has_total: bool = False
    notes: Sequence[str] = ()
    most_lines: int | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table with title and notes, for a terminal."""
        rows = self.rows[:-1] if self.has_total else self.rows
        shown = len(rows)
        if self.most_lines is not None:

            def count_lines(shown: int) -> int:
                return len(console.render_lines(self._draw(rows, shown), options))

            fitting = bisect_right(range(len(rows)), self.most_lines, key=count_lines)
            shown = shown if count_lines(shown) <= self.most_lines else max(fitting - 1, 1)
        yield self._draw(rows, shown)

    def _draw(self, rows: Sequence[Sequence[Cell]], shown: int) -> Group:
        """Return the table with the first rows, and the number of the others."""
        grid = self._empty_grid(box.HEAVY_HEAD)
        if self.title:
            grid.title = Text(self.title, style="table.title")
        for row in rows[:shown]:
            grid.add_row(*map(_as_text, row))
        if shown < len(rows):
            grid.add_row(Text(f"and {len(rows) - shown} more rows", style="dim"))
        if self.has_total:
            grid.add_section()
            grid.add_row(*map(_as_text, self.rows[-1]), style="bold")
        return Group(grid, *(Text(note, style="dim") for note in self.notes))

    def to_html(self) -> str:
        """Return the table with title and notes as HTML; a long table scrolls."""
        heading = self._write_row("th", [Text(column.heading) for column in self.columns])
        rows = [self._write_row("td", [_as_text(cell) for cell in row]) for row in self.rows]
        if self.has_total:
            total = [_as_text(cell).copy() for cell in self.rows[-1]]
            for cell in total:
                cell.style = "bold"
            rows[-1] = self._write_row("td", total)
        title = [write_element("p", Text(self.title, style="bold"))] if self.title else []
        notes = [write_element("div", Text(note, style="dim")) for note in self.notes]
        body = f"<table><thead>{heading}</thead><tbody>{''.join(rows)}</tbody></table>"
        if len(self.rows) > _SCROLLED:
            body = f'<div style="max-height: 32em; overflow: auto">{body}</div>'
        return "\n".join([*title, body, *notes])

    _repr_html_ = to_html

    def to_markdown(self) -> str:
        """Return the table as Markdown, without title and notes."""
        grid = self._empty_grid(box.MARKDOWN)
        for row in self.rows:
            grid.add_row(*(_escape(_as_text(cell)) for cell in row))
        printed = Console(width=_UNLIMITED).render_lines(grid, pad=False)
        lines = ["".join(segment.text for segment in line).strip() for line in printed]
        heading, rule, *rows = filter(None, lines)
        return "\n".join([heading, self._align(rule), *rows])

    def to_csv(self, *, line_end: str = "\n") -> str:
        """Return a line of headings and a line for each row."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator=line_end)
        writer.writerow([column.heading for column in self.columns])
        writer.writerows(self.rows)
        return file.getvalue()

    def _write_row(self, tag: Literal["th", "td"], cells: Sequence[Text]) -> str:
        aligned = zip(cells, self.columns, strict=True)
        written = [write_element(tag, cell, text_align=column.align) for cell, column in aligned]
        return f"<tr>{''.join(written)}</tr>"

    def _empty_grid(self, grid_box: box.Box) -> Grid:
        grid = Grid(box=grid_box, title_justify="left")
        for column in self.columns:
            heading = _as_text(column.heading)
            if grid_box is box.MARKDOWN:
                heading = _escape(heading)
            grid.add_column(heading, justify=column.align, overflow="fold")
        return grid

    def _align(self, rule: str) -> str:
        """Return the rule below the headings, with a colon below each right-aligned heading."""
        dashes = rule.strip("|").split("|")
        cells = [
            f"{dash[:-1]}:" if column.align == "right" else dash
            for dash, column in zip(dashes, self.columns, strict=True)
        ]
        return f"|{'|'.join(cells)}|"


def _as_text(cell: Cell) -> Text:
    """Return a cell as text in which rich reads no markup."""
    return cell if isinstance(cell, Text) else Text(str(cell))


def _escape(cell: Text) -> Text:
    """Return a cell that Markdown reads as a single cell."""
    return Text(cell.plain.replace("|", r"\|").replace("\n", " "))
