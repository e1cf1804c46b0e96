"""A digest depends on each value and its place, and on no layout."""

import struct

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from lightning_prune.tensors.digests import digest_weights
from lightning_prune.tensors.shards import Shard


def digest_in_python(values):
    """Return the digest of 32-bit floats as the formula says, with Python's integers."""
    total = 0
    for index, value in enumerate(values):
        (bits,) = struct.unpack("<i", struct.pack("<f", value))
        total += (index * 0x9E3779B97F4A7C15 + 0x94D049BB133111EB) * bits
    total %= 2**64
    return total - 2**64 if total >= 2**63 else total


@given(st.lists(st.floats(width=32), max_size=20))
def test_it_is_the_sum_of_the_formula(values):
    assert int(digest_weights(torch.tensor(values), None)) == digest_in_python(values)


@given(st.integers(1, 9), st.integers(1, 7), st.integers(1, 4), st.integers(1, 3))
def test_digests_of_parts_add_up_to_that_of_the_whole(rows, columns, across, down):
    whole = torch.randn(rows, columns)
    total = torch.zeros((), dtype=torch.int64)
    for of_rows in torch.arange(rows).chunk(down):
        for of_columns in torch.arange(columns).chunk(across):
            shard = Shard(
                shape=(rows, columns), positions=(of_rows, of_columns), starts=((), ()), groups=()
            )
            total += digest_weights(shard.cut(whole), shard)
    assert total == digest_weights(whole, None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_change_of_a_bit_or_of_two_places_changes_it(dtype):
    values = torch.randn(6, 5).to(dtype)
    digests = {int(digest_weights(values, None))}
    for row in range(6):
        changed = values.clone()
        changed[row, 2] = changed[row, 2].nextafter(changed[row, 2] + 1) if row else -changed[0, 2]
        digests.add(int(digest_weights(changed, None)))
        digests.add(int(digest_weights(values.roll(row, 0), None)))
    assert len(digests) == 1 + 6 + 5


def test_it_does_not_depend_on_strides_and_takes_empty_tensors():
    values = torch.randn(4, 3, 2, 2)
    channels_last = values.to(memory_format=torch.channels_last)
    assert digest_weights(values, None) == digest_weights(channels_last, None)
    assert digest_weights(torch.zeros(0, 3), None) == 0
