"""Blocks of many tensors, one for each program of a launch on a GPU."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

SPAN = 1 << 15
"""Number of values of a program."""


_STAY = nullcontext()


def enter_device(device: torch.device) -> AbstractContextManager[None]:
    """Let Triton launch on a device; its interpreter runs on a CPU."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return _STAY
    return torch.cuda.device(device)


def send(numbers: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return numbers on a device, without waiting for the device."""
    return torch.tensor(numbers, dtype=dtype, device="cpu").to(device, non_blocking=True)


def find_addresses(tensors: Sequence[Tensor | None]) -> list[int]:
    """Return the addresses of tensors; 0 for none."""
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


class Blocks:
    """The rows of a table, one for each tensor, and the programs that share the values out.

    All whole numbers travel to the device together, and the host does not wait.

    Args:
        sizes: Number of values of each tensor.
        columns: Numbers of the rows that a kernel reads, such as addresses.
        device: Where the launch will be.
        span: Number of values of a program; by default `SPAN`.

    Attributes:
        device: The device.
        span: Number of values of a program.
        programs: Number of programs.
        rows: The row of each program, ``(programs,)``.
        starts: The first value of each program, ``(programs,)``.
        sizes: Number of values of each row, ``(rows,)``.
        columns: The columns, each ``(rows,)``.
    """

    def __init__(
        self,
        sizes: Sequence[int] | Tensor,
        columns: Sequence[Sequence[int] | Tensor],
        device: torch.device,
        span: int | None = None,
    ) -> None:
        self.device, self.span = device, span or SPAN
        numbers = torch.as_tensor(sizes, device="cpu")
        spans = ((numbers + self.span - 1) // self.span).clamp(min=1)
        rows = torch.arange(len(numbers), device="cpu").repeat_interleave(spans)
        before = (spans.cumsum(0) - spans).repeat_interleave(spans)
        self.programs = len(rows)
        starts = (torch.arange(len(rows), device="cpu") - before) * self.span
        of_rows = [torch.as_tensor(column, device="cpu") for column in columns]
        self.rows, self.starts, self.sizes, *self.columns = _send(
            [rows, starts, numbers, *of_rows], device
        )


def _send(columns: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Return columns of whole numbers on a device, each at a multiple of 16 bytes."""
    widths = [len(column) + len(column) % 2 for column in columns]
    table = torch.zeros(sum(widths), dtype=torch.int64, device="cpu")
    for place, column in zip(torch.split(table, widths), columns, strict=True):
        place[: len(column)] = column
    sent = torch.split(table.to(device, non_blocking=True), widths)
    return [place[: len(column)] for place, column in zip(sent, columns, strict=True)]
