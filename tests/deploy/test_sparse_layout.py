import tempfile
from pathlib import Path

import torch
from hypothesis import given, settings, strategies as st

from lightning_prune import load_sparse, save_sparse
from lightning_prune.deploy.sparse_layout import (
    DTYPES,
    TensorSize,
    choose_encoding,
    count_sparse_bytes,
    identify,
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
    st.lists(st.integers(0, 60), max_size=3),
    st.lists(st.integers(0, 1000), min_size=1, max_size=3),
    st.text(min_size=1),
)
def test_a_file_never_grows_with_more_zeros(dtype, shape, others, name):
    entries = torch.Size(shape).numel()
    rest = [TensorSize(f"{name}{n}", torch.float32, (n,), n) for n in others]
    counted = [
        count_sparse_bytes([TensorSize(name, dtype, tuple(shape), nonzero), *rest])
        for nonzero in range(0, entries + 1, max(1, entries // 400))
    ]
    assert counted == sorted(counted)


def test_a_tensor_is_stored_in_what_takes_the_fewest_bytes():
    def choose(shape, nonzero, dtype=torch.float32):
        return choose_encoding(TensorSize("weight", dtype, shape, nonzero))

    assert choose((), 0, torch.int64) == "plain"
    assert [choose((100,), nonzero) for nonzero in (90, 50)] == ["plain", "mask"]
    assert [choose((100, 1000), nonzero) for nonzero in (12_000, 11_000)] == ["mask", "indices"]
    assert choose((100, 1000), 99_000, torch.bool) == "plain"


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 3000), st.integers(0, 2**32))
def test_every_encoding_comes_back_bit_for_bit(entries, nonzero, seed):
    order = torch.randperm(entries, generator=torch.Generator().manual_seed(seed))
    weight = torch.zeros(entries)
    weight[order[:nonzero]] = torch.arange(1.0, entries + 1)[:nonzero]
    with tempfile.TemporaryDirectory() as folder:
        save_sparse({"weight": weight}, Path(folder) / "file")
        assert load_sparse(Path(folder) / "file")["weight"].equal(weight)
