"""A kernel that sets the pruned values of many tensors to zero in one launch, on GPUs with Triton.

A launch costs the host some microseconds, for a large tensor and for a small tensor alike. So the
kernel takes a table of addresses. It writes zeros where a weight is pruned, and reads no value.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec

import torch
from torch import Tensor

_BLOCK = 4096

if find_spec("triton") is not None:
    import triton
    import triton.language as tl

    _ELEMENTS = {1: tl.int8, 2: tl.int16, 4: tl.int32, 8: tl.int64}
    """Whole numbers as wide as a value, by the width in bytes: a 0 of them has the bits of +0.0."""

    @triton.jit  # type: ignore[untyped-decorator]
    def _zero_pruned(  # type: ignore[no-untyped-def]
        values, forms, sizes, owners, starts, element: tl.constexpr, block: tl.constexpr
    ):
        """Set a block of a tensor to zero where the weights are pruned."""
        owner = tl.load(owners + tl.program_id(0))
        places = tl.load(starts + tl.program_id(0)) + tl.arange(0, block)
        is_inside = places < tl.load(sizes + owner)
        form = tl.load(forms + owner).to(tl.pointer_type(tl.int8))
        is_pruned = tl.load(form + places, mask=is_inside, other=0) != 0
        target = tl.load(values + owner).to(tl.pointer_type(element))
        tl.store(target + places, 0, mask=is_inside & is_pruned)


class Launch:
    """One launch for tensors of the same device and width, where Triton is installed.

    Args:
        forms: For each tensor, a bool tensor that is True where a weight is pruned. The memory of
            each has no gaps. The tensors must stay where they are; their contents may change.
    """

    def __init__(self, forms: Sequence[Tensor]) -> None:
        self._device = forms[0].device
        sizes = torch.tensor([form.numel() for form in forms], device="cpu")
        blocks = (sizes + _BLOCK - 1) // _BLOCK
        owners = torch.arange(len(forms), device="cpu").repeat_interleave(blocks)
        before = (blocks.cumsum(0) - blocks).repeat_interleave(blocks)
        self._blocks = len(owners)
        self._sizes, self._owners = self._send(sizes), self._send(owners)
        self._starts = self._send((torch.arange(len(owners), device="cpu") - before) * _BLOCK)
        self._forms = self._send(_find_addresses(forms))
        self._addresses = self._values = torch.empty(0, dtype=torch.int64, device="cpu")

    def run(self, values: Sequence[Tensor]) -> None:
        """Set the values of pruned weights to +0.0.

        Args:
            values: Tensors of the same width, each laid out like the bool tensor in the same place.
        """
        addresses = _find_addresses(values)
        if not torch.equal(addresses, self._addresses):
            self._addresses, self._values = addresses, self._send(addresses)
        with self._enter_device():
            _zero_pruned[(self._blocks,)](
                self._values,
                self._forms,
                self._sizes,
                self._owners,
                self._starts,
                element=_ELEMENTS[values[0].element_size()],
                block=_BLOCK,
            )

    def _send(self, numbers: Tensor) -> Tensor:
        return numbers.to(self._device, non_blocking=True)

    def _enter_device(self) -> AbstractContextManager[None]:
        """Let Triton launch on the device of the tensors; its interpreter runs on a CPU."""
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()


def _find_addresses(tensors: Sequence[Tensor]) -> Tensor:
    return torch.tensor([tensor.data_ptr() for tensor in tensors], device="cpu")
