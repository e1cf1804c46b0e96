"""What the subcommands print for the user."""

from collections.abc import Callable
from typing import TypeAlias

from rich.console import Console, RenderableType

Say: TypeAlias = Callable[[RenderableType], None]


def say(message: RenderableType) -> None:
    """Print a line, which the terminal may wrap anywhere, or a table."""
    Console().print(message, soft_wrap=isinstance(message, str))
