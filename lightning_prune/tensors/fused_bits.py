"""What the kernels share: pieces of memory, and the bits of scores; needs Triton."""

import torch
import triton
import triton.language as tl

WHOLE = {1: tl.int8, 2: tl.int16, 4: tl.int32, 8: tl.int64}
"""Whole numbers as wide as a value, by the width in bytes."""

ELEMENTS = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.int16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}
"""As what `read_bits` reads the values of a dtype."""


@triton.jit  # type: ignore[untyped-decorator]
def find_piece(  # type: ignore[no-untyped-def]
    rows, starts, sizes, values, forms, element: tl.constexpr, is_aligned: tl.constexpr
):
    """Return the row, the first place, the number of values, and where values and form lie."""
    row = tl.load(rows + tl.program_id(0))
    start = tl.load(starts + tl.program_id(0))
    size = tl.load(sizes + row)
    source = tl.load(values + row).to(tl.pointer_type(element))
    form = tl.load(forms + row).to(tl.pointer_type(tl.int8))
    if is_aligned:  # then vectors are read
        start, size = tl.multiple_of(start, 16), tl.multiple_of(size, 16)
        source, form = tl.multiple_of(source, 16), tl.multiple_of(form, 16)
    return row, start, size, source, form, tl.load(forms + row) != 0


@triton.jit  # type: ignore[untyped-decorator]
def read_bits(  # type: ignore[no-untyped-def]
    source, form, has_form, places, is_inside, wide: tl.constexpr, is_magnitude: tl.constexpr
):
    """Return the bits of scores: of +0.0 for -0.0, and of -inf for pruned weights.

    Scores are in the precision ``wide``, and their bits are whole numbers as wide.
    """
    top: tl.constexpr = wide.primitive_bitwidth - 1
    whole: tl.constexpr = tl.int32 if wide.primitive_bitwidth == 32 else tl.int64
    read = tl.load(source + places, mask=is_inside, other=0)
    if source.dtype.element_ty == tl.int16:  # bfloat16: a conversion may lose denormal numbers
        read = (read.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    bits = read.to(wide).to(whole, bitcast=True)
    if is_magnitude:
        bits = bits & ((1 << top) - 1)
    bits = tl.where(bits == -(1 << top), 0, bits)
    if has_form:
        is_pruned = tl.load(form + places, mask=is_inside, other=0) != 0
        bits = tl.where(is_pruned, -(1 << wide.fp_mantissa_width), bits)
    return bits


@triton.jit
def order_bits(bits):  # type: ignore[no-untyped-def]
    """Return whole numbers in the order of the floats with these bits."""
    top: tl.constexpr = bits.dtype.primitive_bitwidth - 1
    return bits ^ ((bits >> top) & ((1 << top) - 1))
