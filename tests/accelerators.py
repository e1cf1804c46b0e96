"""A CPU that the package treats as an accelerator, and the waits of the host that it would see."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_prune.tensors import masks, parts

READS = ("tolist", "cpu", "numpy")
"""Methods that read from a device; on a CPU they call no operation."""

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "unique")
"""Operations whose result, or the shape of it, the host must know."""


@contextmanager
def as_on_an_accelerator() -> Iterator[None]:
    """Let the package take the ways that it takes where to read a number is to wait."""
    with patch.object(parts, "READS_AT_ONCE", ()), patch.object(masks, "BITS_ON", ()):
        yield


class _Counter(TorchDispatchMode):
    """Counts the operations that make the host wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.is_reading = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name.startswith("index") and len(args) > 1 else ()
        is_indexed_by_bool = isinstance(indices, list | tuple) and any(
            isinstance(each, torch.Tensor) and each.dtype == torch.bool for each in indices
        )
        if name in WAITING or is_indexed_by_bool:
            self.waits.append(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def waits_of_the_host() -> Iterator[list[str]]:
    """Yield the list of all waits inside of this context; it grows."""
    counter = _Counter()

    def note(name: str) -> Any:
        read = getattr(torch.Tensor, name)

        def run(tensor: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            if counter.is_reading or getattr(tensor, "was_read", False):
                return read(tensor, *arguments, **options)
            counter.waits.append(name)
            counter.is_reading = True  # under a default device, torch calls the method once more
            result = read(tensor, *arguments, **options)
            counter.is_reading = False
            if isinstance(result, torch.Tensor):
                result.was_read = True  # another reading would find the tensor on the CPU
            return result

        return run

    with ExitStack() as stack:
        for name in READS:
            stack.enter_context(patch.object(torch.Tensor, name, note(name)))
        stack.enter_context(counter)
        yield counter.waits
