import json
from pathlib import Path

import pytest
import torch

MODULE = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 4))

    def forward(self, values):
        return self.net(values)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Data(LightningDataModule):
    def val_dataloader(self):
        generator = torch.Generator().manual_seed(1)
        values = torch.randn(40, 16, generator=generator)
        return DataLoader(TensorDataset(values, torch.arange(40) % 4), batch_size=8)

    train_dataloader = test_dataloader = val_dataloader
"""

CONFIG = """
seed_everything: 1
trainer:
  accelerator: cpu
  logger: false
  enable_progress_bar: false
  enable_checkpointing: false
  log_every_n_steps: 1
model: shrunk_by_command.Model
data: shrunk_by_command.Data
"""


@pytest.fixture(autouse=True)
def _project(project):
    project("shrunk_by_command", MODULE, CONFIG)


@pytest.fixture
def command(prune_cli):
    return lambda name, *arguments: prune_cli(name, "--config", "recipe.yaml", *arguments)


def checkpoint(zero_channels):
    """Write the checkpoint of a network whose last channels are zero in all places."""
    import shrunk_by_command

    torch.manual_seed(0)
    model = shrunk_by_command.Model()
    first, norm, _, last = model.net
    with torch.no_grad():
        for rows in (first.weight, first.bias, norm.weight, norm.bias, last.weight.T):
            rows[24 - zero_channels :] = 0.0
    state = {"state_dict": model.state_dict(), "pytorch-lightning_version": "2.6.0"}
    torch.save(state | {"epoch": 7, "global_step": 99, "loops": {}, "callbacks": {}}, "model.ckpt")
    return model.eval()


def test_a_shrunk_checkpoint_is_written_tested_trained_and_reported(command, capsys):
    model = checkpoint(16)
    command("shrink", "--ckpt_path", "model.ckpt")
    said = capsys.readouterr().out
    assert "parameters: 556 before, 188 after" in said
    assert "written: model-shrunk.ckpt" in said
    table = [line.split() for line in said.splitlines() if "val_loss" in line]
    assert [cells[-2] for cells in table] == ["+0.0000"]
    state = torch.load("model-shrunk.ckpt", weights_only=True)
    assert state["state_dict"]["net.0.weight"].shape == (8, 16)
    assert (state["epoch"], state["global_step"]) == (0, 0)

    command("test", "--ckpt_path", "model-shrunk.ckpt")
    assert "val_loss" in capsys.readouterr().out
    fit = ("--trainer.max_epochs", "1", "--trainer.default_root_dir", "fit")
    command("fit", *fit, "--ckpt_path", "model-shrunk.ckpt")
    capsys.readouterr()
    report = ("--ckpt_path", "model-shrunk.ckpt", "--latency", "false", "--output", "report.json")
    command("report", *report)
    written = json.loads(Path("report.json").read_text())
    assert (written["total"]["dense_macs"], written["total"]["effective_macs"]) == (480, 160)
    assert torch.equal(model.net[0].weight[8:], torch.zeros(16, 16))


def test_what_was_saved_is_adopted_in_python(command):
    import shrunk_by_command

    from lightning_prune import adopt

    model = checkpoint(16)
    command("shrink", "--ckpt_path", "model.ckpt", "--output", "new/small.ckpt")
    fresh = shrunk_by_command.Model()
    adopt(fresh, torch.load("new/small.ckpt", weights_only=True))
    values = torch.randn(5, 16)
    torch.testing.assert_close(fresh.eval()(values), model(values))


def test_load_from_checkpoint_says_how_a_shrunk_checkpoint_is_loaded(command, capsys):
    from shrunk_by_command import Model

    checkpoint(zero_channels=8)
    command("shrink", "--ckpt_path", "model.ckpt")
    step = "now: lightning_prune.adopt(model, torch.load('model-shrunk.ckpt', weights_only=True))"
    assert f"{step} in Python" in capsys.readouterr().out
    with pytest.raises((ModuleNotFoundError, ValueError), match=r"call adopt\(model"):
        Model.load_from_checkpoint("model-shrunk.ckpt")


def test_other_checkpoints_are_left_to_lightning(command, monkeypatch):
    import shrunk_by_command

    def configured_too_early(self):
        assert self.trainer.state.fn == "test"

    checkpoint(16)
    state = torch.load("model.ckpt", weights_only=True) | {"attributes": "the user's own"}
    del state["loops"]
    torch.save(state, "model.ckpt")
    monkeypatch.setattr(shrunk_by_command.Model, "configure_model", configured_too_early)
    command("test", "--ckpt_path", "model.ckpt")


def test_a_link_to_the_checkpoint_is_no_output_and_an_unwritable_output_is_found_first(
    command, capsys, monkeypatch
):
    import shrunk_by_command

    checkpoint(16)
    before = Path("model.ckpt").read_bytes()
    Path("linked.ckpt").hardlink_to("model.ckpt")
    monkeypatch.setattr(shrunk_by_command.Model, "validation_step", None)
    for output in ("linked.ckpt", "model.ckpt/small.ckpt"):
        with pytest.raises(SystemExit):
            command("shrink", "--ckpt_path", "model.ckpt", "--output", output)
        assert f"got output='{output}'" in capsys.readouterr().err
    assert Path("model.ckpt").read_bytes() == before


REFUSALS = {
    "need zero channels that can be removed, got none in ckpt_path='model.ckpt'": [
        "--ckpt_path",
        "model.ckpt",
    ],
    "need an existing checkpoint, got ckpt_path='absent.ckpt'": ["--ckpt_path", "absent.ckpt"],
    "need an output other than ckpt_path, got output='model.ckpt'": [
        "--ckpt_path",
        "model.ckpt",
        "--output",
        "model.ckpt",
    ],
}


@pytest.mark.parametrize("error", REFUSALS)
def test_errors_come_without_a_traceback_and_leave_no_file(error, command, capsys, tmp_path):
    checkpoint(0)
    with pytest.raises(SystemExit):
        command("shrink", *REFUSALS[error])
    assert error in capsys.readouterr().err
    assert not list(tmp_path.glob("*shrunk.ckpt"))
