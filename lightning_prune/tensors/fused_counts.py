"""A kernel that counts in many tensors in one launch, on GPUs with Triton."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_prune.tensors.blocks import Blocks, enter_device, find_addresses
from lightning_prune.tensors.fused_bits import WHOLE, find_piece

_BLOCK = 4096
_EXPONENTS = {
    torch.float16: 0x7C00,
    torch.bfloat16: 0x7F80,
    torch.float32: 0x7F800000,
    torch.float64: 0x7FF << 52,
}
_ANY, _NONE, _ALL = 0, 1, 2


def count_nonzero(values: Sequence[Tensor], marks: Sequence[Tensor]) -> Tensor:
    """Count in each tensor the values that are not 0 where a bool tensor is true, ``(tensors,)``.

    Args:
        values: Tensors of the same width, on the same device.
        marks: For each tensor a bool tensor that lies in memory like it.
    """
    bits = 8 * values[0].element_size()
    return _count(values, marks, (1 << bits - 1) - 1, _ANY)  # without the sign: -0.0 is 0


def count_zeros(values: Sequence[Tensor], marks: Sequence[Tensor]) -> Tensor:
    """Count in each tensor the false values where another bool tensor is true, ``(tensors,)``.

    Args:
        values: Bool tensors on the same device.
        marks: For each tensor a bool tensor that lies in memory like it.
    """
    return _count(values, marks, 1, _NONE)


def count_infinite(values: Sequence[Tensor]) -> Tensor:
    """Count in each tensor the values that are NaN or infinite, ``(tensors,)``.

    Args:
        values: Tensors of the same dtype, on the same device, without gaps.
    """
    return _count(values, [None] * len(values), _EXPONENTS[values[0].dtype], _ALL)


def _count(
    values: Sequence[Tensor], marks: Sequence[Tensor | None], bits: int, found: int
) -> Tensor:
    device = values[0].device
    columns = find_addresses(values), find_addresses(marks)
    blocks = Blocks([each.numel() for each in values], columns, device)
    counts = torch.zeros(len(values), dtype=torch.int64, device=device)
    with enter_device(device):
        _count_blocks[(blocks.programs,)](
            blocks.rows,
            blocks.starts,
            blocks.sizes,
            *blocks.columns,
            counts,
            element=WHOLE[values[0].element_size()],
            bits=bits,
            found=found,
            span=blocks.span,
            block=_BLOCK,
        )
    return counts


@triton.jit  # type: ignore[untyped-decorator]
def _count_blocks(  # type: ignore[no-untyped-def]
    rows,
    starts,
    sizes,
    values,
    marks,
    counts,
    element: tl.constexpr,
    bits: tl.constexpr,
    found: tl.constexpr,
    span: tl.constexpr,
    block: tl.constexpr,
):
    """Add the number of values of a program whose bits are found to that of the tensor."""
    row, start, size, source, flags, has_mark = find_piece(
        rows, starts, sizes, values, marks, element, False
    )
    number = tl.zeros([block], dtype=tl.int32)
    for first in range(0, span, block):
        if start + first < size:
            places = start + first + tl.arange(0, block)
            is_inside = places < size
            seen = tl.load(source + places, mask=is_inside, other=0) & bits
            is_marked = is_inside
            if found != 2:
                is_marked = tl.load(flags + places, mask=is_inside & has_mark, other=0) != 0
            if found == 0:
                is_found = seen != 0
            elif found == 1:
                is_found = seen == 0
            else:
                is_found = seen == bits
            number += (is_found & is_marked).to(tl.int32)
    tl.atomic_add(counts + row, tl.sum(number, axis=0).to(tl.int64))
