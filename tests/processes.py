"""A few processes that talk by gloo over the loopback device, for distributed tests."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.kit.processes import Processes


@contextmanager
def processes(size: int) -> Iterator[Callable[..., list[Any]]]:
    """Yield a function that runs another one in ``size`` processes; they start when first used."""
    pool: Processes | None = None

    def run(function: Callable[..., Any], *args: Any) -> list[Any]:
        nonlocal pool
        pool = pool or Processes(size)
        try:
            return pool.run(function, *args)
        except RuntimeError as failure:
            pool.close()
            pool = None
            raise AssertionError(str(failure)) from None

    try:
        yield run
    finally:
        if pool is not None:
            pool.close()
