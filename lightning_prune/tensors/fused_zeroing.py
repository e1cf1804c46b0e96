"""A kernel that sets the pruned values of many tensors to zero in one launch, on GPUs with Triton.

A launch costs the host some microseconds, for a large tensor and for a small tensor alike. So the
kernel takes a table of addresses. It reads and writes all values, as vectors of bytes: nearly each
sector of the memory has pruned weights, and to write them one by one takes longer.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_prune.tensors.blocks import Blocks, enter_device, find_addresses, send
from lightning_prune.tensors.fused_bits import WHOLE

_VECTOR = 16
"""Bytes that a thread reads or writes at once, if the address is a multiple of them."""

_BLOCK = 128 * _VECTOR
"""Bytes that a program, of four warps as is the default of Triton, reads or writes at once."""


@triton.jit  # type: ignore[untyped-decorator]
def _zero_pruned(  # type: ignore[no-untyped-def]
    values,
    forms,
    sizes,
    owners,
    starts,
    element: tl.constexpr,
    alignment: tl.constexpr,
    block: tl.constexpr,
):
    """Set two blocks of a tensor to zero where the weights are pruned.

    All loads of whole blocks come before the stores, so that the program waits once for both.
    """
    owner = tl.load(owners + tl.program_id(0))
    start = tl.multiple_of(tl.load(starts + tl.program_id(0)), block)
    size = tl.load(sizes + owner)
    form = tl.multiple_of(tl.load(forms + owner).to(tl.pointer_type(tl.int8)), alignment)
    target = tl.multiple_of(tl.load(values + owner).to(tl.pointer_type(element)), alignment)
    first = start + tl.arange(0, block)
    second = first + block
    if start + 2 * block <= size:
        is_pruned = tl.load(form + first) != 0
        is_pruned_there = tl.load(form + second) != 0
        found = tl.load(target + first)
        found_there = tl.load(target + second)
        tl.store(target + first, tl.where(is_pruned, 0, found))
        tl.store(target + second, tl.where(is_pruned_there, 0, found_there))
    else:
        is_pruned = tl.load(form + first, mask=first < size, other=0) != 0
        is_pruned_there = tl.load(form + second, mask=second < size, other=0) != 0
        tl.store(target + first, 0, mask=is_pruned)
        tl.store(target + second, 0, mask=is_pruned_there)


class Launch:
    """One launch for tensors of the same device and width, where Triton is installed.

    Args:
        forms: For each tensor, a bool tensor that is True where a weight is pruned. The memory of
            each has no gaps. The tensors must stay where they are; their contents may change.
        width: The bytes of a value.
    """

    def __init__(self, forms: Sequence[Tensor], width: int) -> None:
        self._width, self._block = width, _BLOCK // width
        self._of_forms = find_addresses(forms)
        sizes = [form.numel() for form in forms]
        self._blocks = Blocks(sizes, [self._of_forms], forms[0].device, span=2 * self._block)
        self._grid = self._blocks.programs, 1, 1
        self._of_values: list[int] = []
        self._alignment = 0  # in bytes, of all addresses
        self._kernel: Any
        self._arguments: tuple[Any, ...]

    def run(self, values: Sequence[Tensor]) -> None:
        """Set the values of pruned weights to +0.0.

        Args:
            values: Tensors of the same width, each laid out like the bool tensor in the same place.
        """
        addresses = find_addresses(values)
        if addresses != self._of_values:
            self._prepare(addresses)
        with enter_device(self._blocks.device):
            compiled = self._kernel[self._grid](*self._arguments)
        if compiled is not None:  # from now on the arguments need not be looked at
            self._kernel = compiled

    def _prepare(self, addresses: list[int]) -> None:
        """Take up the addresses of other values."""
        is_aligned = all(address % _VECTOR == 0 for address in addresses + self._of_forms)
        alignment = _VECTOR if is_aligned else 1
        if alignment != self._alignment:
            self._alignment, self._kernel = alignment, _zero_pruned
        self._of_values = addresses
        blocks = self._blocks
        self._arguments = (
            send(addresses, torch.int64, blocks.device),
            *blocks.columns,
            blocks.sizes,
            blocks.rows,
            blocks.starts,
            WHOLE[self._width],
            alignment,
            self._block,
        )
