import hashlib
import json
import pickle
import struct
import sys
import tempfile
from pathlib import Path

import pytest
import safetensors.torch
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


@pytest.mark.parametrize(("dtype", "bound"), [(None, 0.14), (torch.float16, 0.09)])
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


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("sparse") / "file"
    save_sparse({"a": torch.tensor([0.0] * 60 + [1.0] * 4), "b": torch.ones(3)}, path)
    return path.read_bytes()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_flipped_bit_anywhere_is_refused(written, data):
    position = data.draw(st.integers(0, 8 * len(written) - 1))
    damaged = bytearray(written)
    damaged[position // 8] ^= 1 << position % 8
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="need a file of save_sparse, got path="):
            load_sparse(path)


@pytest.mark.parametrize("length", [0, 5, 9, 100, -1])
def test_a_cut_off_file_is_refused(written, length, tmp_path):
    (tmp_path / "file").write_bytes(written[:length])
    with pytest.raises(ValueError, match=r"file of save_sparse, got path='.*file': it is "):
        load_sparse(tmp_path / "file")


class Harmful:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a plain text file that someone named by mistake", "it is not a safetensors file"),
        (pickle.dumps(Harmful()) * 9, "it is not a safetensors file"),
        (safetensors.torch.save({"a": torch.ones(2)}), "it is not from save_sparse"),
        (struct.pack("<Q", 2**60) + b"{}", "it is cut off or damaged"),
    ],
)
def test_a_foreign_file_is_refused_and_nothing_in_it_is_executed(
    content, reason, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("file").write_bytes(content)
    with pytest.raises(ValueError, match=f"got path='file': {reason}"):
        load_sparse("file")
    assert not Path("executed").exists()


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_sparse(tmp_path / "nowhere")


def forged(written, tensors=None, version="1", entry=None):
    """A file with other content and a checksum that fits it."""
    stored = {**safetensors.torch.load(written), **(tensors or {})}
    stored = {key: tensor for key, tensor in stored.items() if tensor is not None}
    length = struct.unpack("<Q", written[:8])[0]
    metadata = json.loads(written[8 : 8 + length])["__metadata__"]
    described = json.loads(metadata["tensors"])
    described["a"] = entry or described["a"]
    metadata |= {"version": version, "tensors": json.dumps(described)}
    digest = hashlib.sha256(metadata["tensors"].encode())
    for key in sorted(stored):
        digest.update(stored[key].numpy().tobytes())
    return safetensors.torch.save(stored, {**metadata, "checksum": digest.hexdigest()})


NOTHING = {"tensors": {"mask/a": torch.ones(0, dtype=torch.uint8), "values/a": torch.ones(0)}}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": "2"}, "it has version 2, and this release reads version 1"),
        ({"tensors": {"values/a": torch.ones(5)}}, "'a' has 5 values, and 4 by its mask"),
        ({"tensors": {"values/a": torch.ones(2, 2)}}, "'a' has 4 values, and 4 by its mask"),
        ({"tensors": {"mask/a": torch.ones(9, dtype=torch.uint8)}}, "the mask of 'a' has not one"),
        ({"tensors": {"mask/a": torch.ones(8, dtype=torch.int8)}}, "the mask of 'a' has not one"),
        ({"tensors": {"mask/a": None}}, "its metadata are not valid"),
        ({"tensors": {"plain/b": torch.ones(4)}}, r"'b' is \[4\] and should be \[3\]"),
        ({"tensors": {"plain/c": torch.ones(4)}}, "it holds more than its metadata names: plain/c"),
        ({"entry": {"dtype": "nn", "shape": [64]}}, "its metadata are not valid"),
        ({"entry": {"dtype": "float32", "shape": [-8, -8]}}, r"'a' has the shape \[-8, -8\]"),
        ({"entry": {"dtype": "float32", "shape": [2**50]}}, "the mask of 'a' has not one bit"),
        ({"entry": {"dtype": "float32", "shape": [2**44]}}, "the mask of 'a' has not one bit"),
        ({"entry": {"dtype": "float32", "shape": [2**62, 2**62, 0]}, **NOTHING}, "are not valid"),
        ({"entry": {"dtype": "int32", "shape": [64]}}, "stored as float32, and has the type int32"),
        ({"tensors": {"values/a": torch.ones(4).to(torch.complex64)}}, "stored as complex64"),
        ({"tensors": {"plain/b": torch.ones(3).double()}}, "'b' is stored as float64, and has"),
        ({"entry": {"same_as": "a"}}, "its metadata are not valid"),
        ({"entry": {"same_as": "b"}}, "its metadata are not valid"),
        ({"entry": 3}, "its metadata are not valid"),
    ],
)
def test_a_forged_file_is_refused(written, change, reason, tmp_path):
    assert load_sparse_bytes(forged(written), tmp_path)
    with pytest.raises(ValueError, match=reason):
        load_sparse_bytes(forged(written, **change), tmp_path)


def test_metadata_that_are_nested_too_deeply_are_refused(tmp_path):
    nested = "[" * 200_000
    digest = hashlib.sha256(nested.encode()).hexdigest()
    metadata = {"format": "lightning_prune.sparse", "version": "1", "tensors": nested}
    with pytest.raises(ValueError, match="its metadata are not valid"):
        load_sparse_bytes(safetensors.torch.save({}, metadata | {"checksum": digest}), tmp_path)


def test_tensors_take_at_most_64_times_the_bytes_of_a_file(tmp_path):
    save_sparse({"a": torch.zeros(10**6, dtype=torch.float64)}, tmp_path / "file")
    (tensor,) = load_sparse(tmp_path / "file").values()
    assert 63 < tensor.nbytes / (tmp_path / "file").stat().st_size <= 64


def load_sparse_bytes(content, folder):
    (folder / "file").write_bytes(content)
    return load_sparse(folder / "file")


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
