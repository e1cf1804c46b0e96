"""Sums of slices do not depend on the order of the values, nor on the cuts."""

import math

import pytest
import torch
from hypothesis import given, strategies as st

from lightning_prune.tensors.slices import Slices, find_any_of_slices, sum_slices

DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])


def sum_of(values, axis=0):
    """Return the sums of the slices of a whole tensor."""
    whole = Slices(read=lambda: values, axis=axis, shard=None, size=values.numel())
    return sum_slices([whole])[0]


@st.composite
def matrices(draw):
    """Return values of all sizes and signs: denormal numbers, zeros, and large beside small."""
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 40))
    values = torch.randn(
        rows, columns, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))
    )
    spread = draw(st.sampled_from([0, 4, 20, 38]))
    exponents = torch.rand(rows, columns, generator=torch.Generator().manual_seed(1))
    values = values.double() * 10 ** (-spread * exponents.double())
    return values.masked_fill(exponents < draw(st.sampled_from([0.0, 0.3, 1.0])), 0)


@given(matrices(), DTYPES, st.randoms())
def test_the_order_of_the_values_does_not_change_a_bit(values, dtype, random):
    values = values.to(dtype)
    order = list(range(values.shape[1]))
    random.shuffle(order)
    expected = sum_of(values)
    assert torch.equal(sum_of(values[:, order]), expected)
    assert torch.equal(sum_of(values.T.contiguous(), axis=1), expected)
    assert torch.equal(sum_of(values[:, order].reshape(len(values), -1, 1)), expected)


@given(matrices(), DTYPES)
def test_a_sum_is_as_near_as_the_docstring_says(values, dtype):
    values = values.to(dtype)
    size = values.shape[1]
    bits = max(size - 1, 0).bit_length()
    for row, found in zip(values.double().tolist(), sum_of(values).tolist(), strict=True):
        largest = max(map(abs, row))
        bound = size * largest * 2.0 ** (bits - 52)
        assert abs(found - math.fsum(row)) <= bound + 2.0**-1000


@pytest.mark.parametrize("shape", [(3, 200_000), (200_000, 3), (500, 7, 60)])
@pytest.mark.parametrize("axis", [0, 1])
def test_pieces_of_large_tensors_add_up(shape, axis):
    values = torch.rand(shape)
    others = [other for other in range(len(shape)) if other != axis]
    torch.testing.assert_close(
        sum_of(values, axis), values.double().sum(others), rtol=1e-10, atol=0.0
    )


def test_whole_numbers_and_ties_are_exact():
    values = torch.tensor([[0.1, 0.2, 0.3], [0.3, 0.1, 0.2], [2.0**24, 1.0, 1.0]])
    first, second, third = sum_of(values).tolist()
    assert first == second
    assert third == 2.0**24 + 2


def test_rows_of_zeros_and_tensors_without_a_value_add_up_to_zero():
    assert sum_of(torch.zeros(2, 3)).tolist() == [0.0, 0.0]
    assert sum_of(torch.zeros(2, 0)).tolist() == [0.0, 0.0]
    assert sum_of(torch.zeros(4)).tolist() == [0.0] * 4


def test_a_slice_with_any_value_is_found():
    values = torch.tensor([[0.0, 0.0], [0.0, -0.5], [float("nan"), 0.0]])
    whole = [Slices(read=lambda: values != 0, axis=axis, shard=None, size=6) for axis in (0, 1)]
    rows, columns = find_any_of_slices(whole)
    assert rows.tolist() == [False, True, True]
    assert columns.tolist() == [True, True]
