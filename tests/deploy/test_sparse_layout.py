import tempfile
from pathlib import Path

import torch
from hypothesis import given, settings, strategies as st

from lightning_prune import save_sparse
from lightning_prune.deploy.sparse_layout import (
    DTYPES,
    TensorSize,
    count_sparse_bytes,
    identify,
    pays_for_mask,
)


@st.composite
def tensors(draw):
    """Tensors of any type and shape, with any number of nonzero entries in random places."""
    dtype = draw(st.sampled_from(list(DTYPES.values())))
    shape = draw(st.lists(st.sampled_from([0, 1, 2, 3, 9, 33, 100]), max_size=3))
    entries = torch.Size(shape).numel()
    nonzero = draw(st.integers(0, entries) | st.sampled_from([0, entries]))
    flat = torch.zeros(entries, dtype=dtype)
    order = torch.randperm(entries, generator=torch.Generator().manual_seed(nonzero))
    flat.view(torch.uint8).view(entries, dtype.itemsize)[order[:nonzero]] = 1
    return flat.view(shape), nonzero


def file_bytes(weights):
    with tempfile.TemporaryDirectory() as folder:
        save_sparse(weights, Path(folder) / "file")
        return (Path(folder) / "file").stat().st_size


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(min_size=1), tensors(), max_size=6), st.text(min_size=1))
def test_the_counted_bytes_are_those_of_the_file(drawn, tied):
    weights = {name: tensor for name, (tensor, _) in drawn.items()}
    counts = {name: nonzero for name, (_, nonzero) in drawn.items()}
    if weights and tied not in weights:
        first = next(iter(weights))
        weights[tied], counts[tied] = weights[first], counts[first]
    names = {}
    sizes = []
    for name, tensor in weights.items():
        first = names.setdefault(identify(name, tensor), name)
        same_as = None if first == name else first
        shape = tuple(tensor.shape)
        sizes.append(TensorSize(name, tensor.dtype, shape, counts[name], same_as))
    assert count_sparse_bytes(sizes) == file_bytes(weights)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    st.lists(st.integers(0, 30), max_size=3),
    st.lists(st.integers(0, 1000), min_size=1, max_size=3),
    st.text(min_size=1),
)
def test_a_file_never_grows_with_more_zeros(dtype, shape, others, name):
    entries = torch.Size(shape).numel()
    rest = [TensorSize(f"{name}{n}", torch.float32, (n,), n) for n in others]
    counted = [
        count_sparse_bytes([TensorSize(name, dtype, tuple(shape), nonzero), *rest])
        for nonzero in range(entries + 1)[-200:]
    ]
    assert counted == sorted(counted)


def test_a_mask_pays_where_it_saves_more_than_the_entry_in_the_header():
    assert not pays_for_mask(TensorSize("count", torch.int64, (), 0))
    assert pays_for_mask(TensorSize("weight", torch.float32, (100,), 50))
    assert not pays_for_mask(TensorSize("weight", torch.float32, (100,), 90))
