import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from lightning_prune import file_size, load_sparse, save_sparse

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
OTHERS = [torch.float8_e4m3fn, torch.float8_e5m2, torch.bool, torch.uint8, torch.int8]
OTHERS += [torch.int16, torch.int32, torch.int64]


def bits(tensor):
    return tensor.flatten().view(torch.uint8)


def same_bits(left, right):
    return (
        left.dtype == right.dtype
        and left.shape == right.shape
        and torch.equal(bits(left), bits(right))
    )


def there_and_back(weights, **options):
    with tempfile.TemporaryDirectory() as folder:
        save_sparse(weights, Path(folder) / "weights", **options)
        return load_sparse(Path(folder) / "weights")


@st.composite
def tensors(draw):
    """Any bits at all, mostly zeros: NaNs with payloads, -0.0, infinities and subnormals."""
    dtype = draw(st.sampled_from(FLOATS + OTHERS))
    shape = draw(st.lists(st.integers(0, 9), max_size=3))
    entries = torch.Size(shape).numel()
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    raw = torch.randint(0, 256, (entries, dtype.itemsize), dtype=torch.uint8, generator=generator)
    raw[torch.rand(entries, generator=generator) < draw(st.sampled_from([0.0, 0.5, 0.9, 1.0]))] = 0
    if dtype == torch.bool:
        raw = raw.clamp(max=1)
    return raw.flatten().view(dtype).view(shape)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(min_size=1), tensors(), max_size=4))
def test_any_tensors_come_back_bit_for_bit(weights):
    loaded = there_and_back(weights)
    assert list(loaded) == list(weights)
    for name, tensor in weights.items():
        assert same_bits(loaded[name], tensor)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(500, 20)
        self.head = nn.Linear(20, 500)
        self.head.weight = self.embedding.weight
        self.register_buffer("count", torch.tensor(3))
        self.norm = nn.BatchNorm1d(20)


def test_a_module_loads_strictly_with_its_buffers():
    saved, fresh = Tied(), Tied()
    saved.norm.running_var.uniform_()
    fresh.load_state_dict(there_and_back(saved))
    for name, tensor in saved.state_dict().items():
        assert same_bits(fresh.state_dict()[name], tensor)


def test_a_tied_tensor_is_in_the_file_once(tmp_path):
    save_sparse(Tied(), tmp_path / "tied")
    assert (tmp_path / "tied").stat().st_size < 1.2 * 500 * 20 * 4
    loaded = load_sparse(tmp_path / "tied")
    assert loaded["head.weight"] is loaded["embedding.weight"]


def test_views_of_one_storage_are_not_tied():
    storage = torch.arange(12.0)
    square = storage[:9].view(3, 3)
    weights = {"a": square, "b": square.T, "c": square.view(torch.int32), "d": storage[3:]}
    loaded = there_and_back(weights)
    assert all(same_bits(loaded[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("dtype", FLOATS)
def test_minus_zero_and_the_payload_of_nan_survive(dtype):
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    weights = torch.zeros(800, dtype=dtype)
    weights[0] = -0.0
    weights[1:3] = torch.tensor(float("nan")).to(dtype)
    weights[1:2].view(integers).add_(5)  # another payload
    weights[3:4].view(integers).fill_(1)  # the smallest subnormal
    assert same_bits(there_and_back({"a": weights})["a"], weights)
    assert weights[1:2].isnan()


def net_at(sparsity):
    """About a million weights."""
    net = nn.Sequential(
        nn.Conv2d(3, 64, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.Conv2d(64, 128, 3, bias=False),
        nn.BatchNorm2d(128),
        nn.Linear(128, 2048),
        nn.Linear(2048, 300),
    )
    generator = torch.Generator().manual_seed(0)
    for weight in (p for p in net.parameters() if p.dim() > 1):
        order = torch.rand(weight.numel(), generator=generator).argsort()
        weight.data.view(-1)[order[: round(sparsity * weight.numel())]] = 0.0
    return net


@pytest.mark.parametrize(("dtype", "bound"), [(None, 0.131), (torch.float16, 0.08)])
def test_at_sparsity_09_little_of_the_dense_size_is_left(dtype, bound, tmp_path):
    net = net_at(0.9)
    dense = sum(tensor.nbytes for tensor in net.state_dict().values())
    assert dense > 3_600_000
    save_sparse(net, tmp_path / "net", dtype=dtype)
    assert (tmp_path / "net").stat().st_size <= bound * dense


def test_a_dense_tensor_costs_no_mask(tmp_path):
    save_sparse({"a": torch.ones(100_000)}, tmp_path / "dense")
    assert (tmp_path / "dense").stat().st_size < 400_000 + 500


@pytest.mark.parametrize("given", [torch.float64, torch.float32])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)])
def test_rounded_values_load_in_their_own_type_within_the_documented_error(given, dtype, error):
    weights = {"a": torch.randn(1000).to(given), "n": torch.tensor([7])}
    weights["a"][100:] = 0
    loaded = there_and_back(weights, dtype=dtype)
    assert loaded["a"].dtype == given
    difference = (loaded["a"] - weights["a"]).abs()
    assert (difference <= error * weights["a"].abs() + 2**-25).all()
    assert difference.max() > 0
    assert torch.equal(loaded["n"], weights["n"])


def test_narrow_types_are_not_rounded():
    weights = {"a": torch.randn(9).bfloat16()}
    assert same_bits(there_and_back(weights, dtype=torch.float16)["a"], weights["a"])


def test_a_value_too_large_for_half_precision_is_refused_by_name(tmp_path):
    (tmp_path / "net").write_text("older")
    weights = {"fine": torch.ones(2), "large": torch.tensor([1.0, 7e4, float("inf")])}
    with pytest.raises(ValueError, match="that float16 can hold, got 'large' with 70000"):
        save_sparse(weights, tmp_path / "net", dtype=torch.float16)
    assert [path.name for path in tmp_path.iterdir()] == ["net"]
    assert (tmp_path / "net").read_text() == "older"


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": torch.eye(2).to_sparse()}, "got 'a' of type Tensor"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "got 'a' of type complex64"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_what_no_file_can_hold_is_refused_by_name(weights, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_sparse(weights, tmp_path / "file")
    with pytest.raises(TypeError, match=r"need weights\['b'\] as a Tensor, got weights\['b'\]='x'"):
        save_sparse(weights | {"b": "x"}, tmp_path / "file")


def test_only_half_precision_is_a_choice(tmp_path):
    with pytest.raises(ValueError, match=r"need float16, bfloat16 or None, got dtype=torch\.int8"):
        save_sparse(nn.Linear(2, 2), tmp_path / "file", dtype=torch.int8)


def test_tensors_take_at_most_1024_times_the_bytes_of_a_file(tmp_path):
    save_sparse({"a": torch.zeros(10**7, dtype=torch.float64)}, tmp_path / "file")
    (tensor,) = load_sparse(tmp_path / "file").values()
    assert 1000 < tensor.nbytes / (tmp_path / "file").stat().st_size <= 1024


def test_a_loaded_file_can_be_written_anew(tmp_path):
    save_sparse({"a": torch.ones(5000)}, tmp_path / "file")
    loaded = load_sparse(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"")
    assert loaded["a"].sum() == 5000


def test_sizes_are_those_of_the_file_and_of_its_compressed_form(tmp_path):
    (tmp_path / "file").write_bytes(bytes(100_000))
    size = file_size(tmp_path / "file")
    assert size.raw == 100_000
    assert 0 < size.zstd < 100


@pytest.mark.parametrize(
    ("library", "call"),
    [
        ("safetensors", lambda path: save_sparse(nn.Linear(2, 2), path)),
        ("safetensors", load_sparse),
        ("zstandard", file_size),
    ],
)
def test_a_missing_library_is_named_with_its_extra(library, call, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"12345678{")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModuleNotFoundError, match=rf"need {library} .*lightning-prune\[export\]"):
        call(tmp_path / "file")
