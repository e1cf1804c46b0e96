"""A bar in the terminal that shows how far a long search for channels has come."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NoReturn

from torch import distributed
from tqdm import tqdm

_FORMAT = "{desc} |{bar:30}| {n_fmt}/{total_fmt}"


class _Bar:
    """A bar for each stage, in turn; tqdm writes none if stderr is no terminal."""

    def __init__(self) -> None:
        self._stage = ""
        self._bar: tqdm[NoReturn] = tqdm(disable=True)

    def show(self, stage: str, done: int, total: int) -> None:
        """Move the bar of a stage, or begin it."""
        if self._stage != stage:
            self.clear()
            self._stage, self._bar = stage, _begin_bar(stage, total)
        self._bar.update(done - self._bar.n)

    def clear(self) -> None:
        """Take the bar away."""
        self._bar.close()


def _begin_bar(stage: str, total: int) -> "tqdm[NoReturn]":
    return tqdm(
        desc=stage, total=total, file=sys.stderr, leave=False, disable=None, bar_format=_FORMAT
    )


_shown: ContextVar[_Bar | None] = ContextVar("_shown", default=None)


@contextmanager
def show_progress() -> Iterator[None]:
    """Show what `note_progress` says inside the block, on rank 0, if stderr is a terminal."""
    is_parallel = distributed.is_available() and distributed.is_initialized()
    if _shown.get() is not None or (is_parallel and distributed.get_rank() > 0):
        yield
        return
    bar = _Bar()
    token = _shown.set(bar)
    try:
        yield
    finally:
        _shown.reset(token)
        bar.clear()


def note_progress(stage: str, done: int, total: int) -> None:
    """Say how far a stage has come; nothing is written outside of `show_progress`.

    Args:
        stage: What is done, in words.
        done: How many parts are done.
        total: How many parts there are.
    """
    bar = _shown.get()
    if bar is not None:
        bar.show(stage, done, total)
