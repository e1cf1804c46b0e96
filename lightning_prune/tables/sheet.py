"""Tables and lines below each other."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from lightning_prune.tables.html import write_element
from lightning_prune.tables.table import Table


@dataclass(frozen=True)
class Sheet:
    """Tables and lines below each other; rich prints them, and a notebook shows them.

    Args:
        parts: The tables and lines, from top to bottom.

    Examples:
        >>> Sheet([Text("2 < 3")]).to_html()
        '<p>2 &lt; 3</p>'
    """

    parts: Sequence[Table | Text]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the parts, for a terminal."""
        yield from self.parts

    def to_html(self) -> str:
        """Return the parts as HTML."""
        return "\n".join(
            part.to_html() if isinstance(part, Table) else write_element("p", part)
            for part in self.parts
        )

    _repr_html_ = to_html
