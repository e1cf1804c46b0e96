"""A line in the terminal that shows how far a long search for channels has come."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO

from torch import distributed

_WIDTH = 30


class _Line:
    """A line that is written anew in a terminal, and goes at the end.

    Args:
        stream: The terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._length = stream, 0

    def show(self, stage: str, done: int, total: int) -> None:
        """Write the line."""
        filled = _WIDTH * done // max(total, 1)
        bar = "#" * filled + "." * (_WIDTH - filled)
        self._write(f"{stage} [{bar}] {done}/{total}")

    def clear(self) -> None:
        """Take the line away."""
        if self._length:
            self._write("")
            self._stream.write("\r")

    def _write(self, text: str) -> None:
        self._stream.write("\r" + text.ljust(self._length))
        self._stream.flush()
        self._length = len(text)


_shown: ContextVar[_Line | None] = ContextVar("_shown", default=None)


@contextmanager
def show_progress() -> Iterator[None]:
    """Show what `note_progress` says inside the block, on rank 0, if stderr is a terminal."""
    is_parallel = distributed.is_available() and distributed.is_initialized()
    is_replica = is_parallel and distributed.get_rank() > 0
    if _shown.get() is not None or is_replica or not sys.stderr.isatty():
        yield
        return
    line = _Line(sys.stderr)
    token = _shown.set(line)
    try:
        yield
    finally:
        _shown.reset(token)
        line.clear()


def note_progress(stage: str, done: int, total: int) -> None:
    """Say how far a stage has come; nothing is written outside of `show_progress`.

    Args:
        stage: What is done, in words.
        done: How many parts are done.
        total: How many parts there are.
    """
    line = _shown.get()
    if line is not None:
        line.show(stage, done, total)
