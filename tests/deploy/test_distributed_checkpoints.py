"""The folder of a distributed checkpoint is read as the file of a whole checkpoint is."""

import warnings

import pytest
import torch
from torch.distributed import checkpoint as distributed

from lightning_prune.deploy.checkpoints import read_lightning_checkpoint

WEIGHTS = {
    "net.0.weight": torch.arange(12.0).view(3, 4),
    "net.1.running_mean": torch.ones(3, dtype=torch.bfloat16),
    "net.1.num_batches_tracked": torch.tensor(5),
}


@pytest.fixture
def folder(tmp_path):
    """Write a folder as Lightning writes it with FSDP2."""
    path = tmp_path / "run.ckpt"
    states = {"state_dict": WEIGHTS, "optimizer_0": {"state": {"weight": torch.ones(3)}}}
    with warnings.catch_warnings():  # a single process writes
        warnings.simplefilter("ignore")
        distributed.save(states, storage_writer=distributed.FileSystemWriter(path), no_dist=True)
    torch.save({"epoch": 3, "hyper_parameters": {"width": 3}}, path / "meta.pt")
    return path


def test_the_whole_weights_and_the_other_states_are_read(folder):
    checkpoint = read_lightning_checkpoint(folder)
    assert checkpoint["epoch"] == 3
    assert checkpoint["state_dict"].keys() == WEIGHTS.keys()
    for name, weight in checkpoint["state_dict"].items():
        assert weight.dtype == WEIGHTS[name].dtype
        assert torch.equal(weight, WEIGHTS[name])


def call(module, name, argument):
    """Return a pickle that calls a function, which may be an attribute of what a module imports."""
    texts = [b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name, argument)]
    return b"\x80\x04" + texts[0] + texts[1] + b"\x93" + texts[2] + b"\x85R."


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "mkdir"),
        ("pathlib", "os.mkdir"),
        ("pathlib", "Path.mkdir"),
        ("pathlib._local", "os.mkdir"),
        ("torch", "os.mkdir"),
        ("torch.distributed.checkpoint.metadata", "os.mkdir"),
        ("torch.serialization", "os.mkdir"),
    ],
)
def test_an_index_that_calls_a_function_is_not_executed(
    folder, tmp_path, monkeypatch, module, name
):
    monkeypatch.chdir(tmp_path)
    (folder / ".metadata").write_bytes(call(module, name, "made"))
    with pytest.raises(ValueError, match=f"it holds objects of '{module}.{name}'"):
        read_lightning_checkpoint(folder)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("lost", ["meta.pt", "__0_0.distcp"])
def test_a_folder_with_a_lost_file_is_an_error_that_names_the_folder(folder, lost):
    (folder / lost).unlink()
    with pytest.raises(ValueError, match=r"need a checkpoint that can be loaded, got .*run\.ckpt"):
        read_lightning_checkpoint(folder)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="need the file of a checkpoint, got the folder"):
        read_lightning_checkpoint(tmp_path)
