"""A terminal that remembers what is written to it."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from rich import reconfigure


class Terminal(io.StringIO):
    """Takes texts as a terminal does."""

    def isatty(self) -> bool:
        return True

    def read_anew(self) -> str:
        """Return the text since the last call."""
        text = self.getvalue()
        self.seek(0)
        self.truncate()
        return text


@contextmanager
def terminal_of_rich() -> Iterator[Terminal]:
    """Let rich write to a terminal of 80 columns inside of the block."""
    stream = Terminal()
    with patch.dict("os.environ", TERM="xterm"):
        reconfigure(file=stream, width=80)
        try:
            yield stream
        finally:
            reconfigure()
