"""A kernel that sets the pruned values of many tensors to zero in one launch, on GPUs with Triton.

A launch costs the host some microseconds, for a large tensor and for a small tensor alike. So the
kernel takes a table of addresses. It reads and writes all values, as vectors of bytes: nearly each
sector of the memory has pruned weights, and to write them one by one takes longer.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

_VECTOR = 16
"""Bytes that a thread reads or writes at once, if the address is a multiple of them."""

_BLOCK = 128 * _VECTOR
"""Bytes that a program, of four warps as is the default of Triton, reads or writes at once."""

_STAY = nullcontext()

if find_spec("triton") is not None:
    import triton
    import triton.language as tl

    _ELEMENTS = {1: tl.int8, 2: tl.int16, 4: tl.int32, 8: tl.int64}
    """Whole numbers as wide as a value, by the width in bytes: a 0 of them has the bits of +0.0."""

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
        self._device, self._width, self._block = forms[0].device, width, _BLOCK // width
        self._index = self._device.index if forms[0].is_cuda else None
        span = 2 * self._block
        sizes = torch.tensor([form.numel() for form in forms], device="cpu")
        programs = (sizes + span - 1) // span
        owners = torch.arange(len(forms), device="cpu").repeat_interleave(programs)
        before = (programs.cumsum(0) - programs).repeat_interleave(programs)
        self._grid = len(owners), 1, 1
        self._sizes, self._owners = self._send(sizes), self._send(owners)
        self._starts = self._send((torch.arange(len(owners), device="cpu") - before) * span)
        self._of_forms = _find_addresses(forms)
        self._forms = self._send(torch.tensor(self._of_forms, device="cpu"))
        self._of_values: list[int] = []
        self._alignment = 0  # in bytes, of all addresses
        self._kernel: Any
        self._arguments: tuple[Any, ...]

    def run(self, values: Sequence[Tensor]) -> None:
        """Set the values of pruned weights to +0.0.

        Args:
            values: Tensors of the same width, each laid out like the bool tensor in the same place.
        """
        addresses = _find_addresses(values)
        if addresses != self._of_values:
            self._prepare(addresses)
        with self._enter_device():
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
        self._arguments = (
            self._send(torch.tensor(addresses, device="cpu")),
            self._forms,
            self._sizes,
            self._owners,
            self._starts,
            _ELEMENTS[self._width],
            alignment,
            self._block,
        )

    def _send(self, numbers: Tensor) -> Tensor:
        return numbers.to(self._device, non_blocking=True)

    def _enter_device(self) -> AbstractContextManager[None]:
        """Let Triton launch on the device of the tensors; its interpreter runs on a CPU."""
        if self._index is None or self._index == torch.cuda.current_device():
            return _STAY
        return torch.cuda.device(self._index)


def _find_addresses(tensors: Sequence[Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]
