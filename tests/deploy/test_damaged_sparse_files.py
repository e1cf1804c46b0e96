import hashlib
import json
import pickle
import struct
import tempfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings, strategies as st

from lightning_prune import load_sparse, save_sparse


def load_sparse_bytes(content, folder):
    (folder / "file").write_bytes(content)
    return load_sparse(folder / "file")


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
        ({"version": "3"}, "it has version 3, and this release reads versions 1 and 2"),
        ({"tensors": {"values/a": torch.ones(5)}}, "'a' has 5 values for 4 places"),
        ({"tensors": {"values/a": torch.ones(2, 2)}}, "'a' has 4 values for 4 places"),
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
        ({"tensors": {"values/a": torch.ones(4).long()}}, "stored as int64"),
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


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    path = tmp_path_factory.mktemp("sparse") / "file"
    weight = torch.zeros(2000)
    weight[[0, 5, 255, 256, 1999]] = 1.0
    save_sparse({"a": weight}, path)
    return path.read_bytes()


def counts(*numbers):
    return {"tensors": {"counts/a": torch.tensor(numbers, dtype=torch.int16)}}


def indices(*numbers):
    return {"tensors": {"indices/a": torch.tensor(numbers, dtype=torch.uint8)}}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (counts(3, 1, 0, 0, 0, 0, 1), "'a' has not one count for each 256 of 2,000 entries"),
        (counts(3, 1, 0, 0, 0, 0, 0, 2), "the counts of 'a' do not add up to 5 indices"),
        (counts(3, 3, 0, 0, 0, 0, -2, 1), "the counts of 'a' do not add up to 5 indices"),
        (indices(0, 5, 255, 0), "the counts of 'a' do not add up to 4 indices"),
        (indices(0, 5, 255, 0, 255), "the indices of 'a' do not rise to below 2,000"),
        (indices(0, 5, 5, 0, 207), "the indices of 'a' do not rise to below 2,000"),
        ({"tensors": {"indices/a": torch.ones(5)}}, "the indices of 'a' are not a list of bytes"),
        ({"tensors": {"values/a": torch.ones(4)}}, "'a' has 4 values for 5 places"),
        ({"tensors": {"counts/a": None}}, "its metadata are not valid"),
        ({"entry": {"dtype": "float32", "shape": [2**40]}}, "'a' has not one count for each 256"),
    ],
)
def test_a_file_with_forged_indices_is_refused(indexed, change, reason, tmp_path):
    assert load_sparse_bytes(forged(indexed), tmp_path)
    with pytest.raises(ValueError, match=reason):
        load_sparse_bytes(forged(indexed, **change), tmp_path)


def test_metadata_that_are_nested_too_deeply_are_refused(tmp_path):
    nested = "[" * 200_000
    digest = hashlib.sha256(nested.encode()).hexdigest()
    metadata = {"format": "lightning_prune.sparse", "version": "1", "tensors": nested}
    with pytest.raises(ValueError, match="its metadata are not valid"):
        load_sparse_bytes(safetensors.torch.save({}, metadata | {"checksum": digest}), tmp_path)
