"""Bars in the terminal that show how far something long has come."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import TypeVar

from rich import get_console
from rich.errors import LiveError
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from torch import distributed

_SECONDS = 0.1  # between two pictures of a stage

Item = TypeVar("Item")


class _Block:
    """The bar of a block of `show_progress`: a stage replaces the stage before.

    Args:
        bars: The bars of this block and of those around it; None to show nothing.
    """

    def __init__(self, bars: Progress | None) -> None:
        self.bars = bars
        self._stage: tuple[str, int | None] | None = None
        self._task: TaskID | None = None
        self._drawn = 0.0

    def note(self, stage: str, done: int, total: int | None, detail: str) -> None:
        """Move the bar of a stage, or begin it."""
        if self.bars is None or not _start(self.bars):
            return
        is_new = self._stage != (stage, total)
        if is_new or self._task is None:
            self.clear()
            self._stage, self._task = (stage, total), self.bars.add_task(stage, total=total)
        description = f"{stage}: {detail}" if detail else stage
        self.bars.update(self._task, completed=done, description=description)
        if is_new or done == total or time.monotonic() - self._drawn > _SECONDS:
            self.bars.refresh()
            self._drawn = time.monotonic()

    def clear(self) -> None:
        """Take the bar away."""
        if self.bars is not None and self._task is not None:
            self.bars.remove_task(self._task)
        self._stage = self._task = None


_current: ContextVar[_Block | None] = ContextVar("_current", default=None)


@contextmanager
def show_progress(is_wanted: bool = True) -> Iterator[None]:
    """Show what `note_progress` says inside the block, in a terminal or a notebook, on rank 0.

    A block inside of another draws its bar below, or nothing if the outer block draws nothing.

    Args:
        is_wanted: Whether to show anything.
    """
    outer = _current.get()
    bars = _make_bars() if outer is None else outer.bars
    block = _Block(bars if is_wanted else None)
    token = _current.set(block)
    try:
        yield
    finally:
        _current.reset(token)
        block.clear()
        if outer is None and bars is not None and bars.live.is_started:
            bars.stop()


def note_progress(stage: str, done: int, total: int | None, detail: str = "") -> None:
    """Say how far a stage has come; nothing is written outside of `show_progress`.

    Args:
        stage: The work that is done, in words.
        done: How many parts are done.
        total: How many parts there are; None if nobody knows.
        detail: The present part, in words.
    """
    block = _current.get()
    if block is not None:
        block.note(stage, done, total, detail)


def track_progress(items: Sequence[Item], stage: str) -> Iterator[Item]:
    """Yield items, and say before and after each how many are done.

    Args:
        items: The items.
        stage: The work that is done with each, in words.
    """
    for done, item in enumerate(items):
        note_progress(stage, done, len(items))
        yield item
    note_progress(stage, len(items), len(items))


def _make_bars() -> Progress | None:
    """Return bars that no thread draws, so that measured times do not suffer; None for no bars."""
    console = get_console()
    is_parallel = distributed.is_available() and distributed.is_initialized()
    is_notebook = console.is_jupyter and find_spec("ipywidgets") is not None
    if not (console.is_interactive or is_notebook) or (is_parallel and distributed.get_rank() > 0):
        return None
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        auto_refresh=False,
    )


def _start(bars: Progress) -> bool:
    """Start to draw; return False where an older rich refuses, as the console draws already."""
    if not bars.live.is_started:
        try:
            bars.start()
        except LiveError:
            return False
    return True
