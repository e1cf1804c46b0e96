"""The subcommand reestimate."""

import pytest
import torch

MODULE = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Model(LightningModule):
    def __init__(self, has_norm: bool = True):
        super().__init__()
        norm = nn.BatchNorm1d(8) if has_norm else nn.Identity()
        self.net = nn.Sequential(nn.Linear(16, 8), norm, nn.ReLU(), nn.Linear(8, 4))
        self.example_input_array = torch.zeros(2, 16)

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.01)


class Data(LightningDataModule):
    def train_dataloader(self):
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(80, 16, generator=generator)
        return DataLoader(TensorDataset(images, torch.arange(80) % 4), batch_size=20)

    val_dataloader = train_dataloader
"""

CONFIG = """
seed_everything: 1
trainer:
  accelerator: cpu
  logger: false
  enable_progress_bar: false
  max_epochs: 1
  log_every_n_steps: 1
  default_root_dir: out
  callbacks:
    - class_path: lightning_prune.PruningCallback
      init_args: {sparsity: 0.5, schedule: {class_path: OneShotSchedule, init_args: {end: 1.0}}}
    - class_path: ModelCheckpoint
      init_args: {dirpath: ., filename: last}
model: renewed.Model
data: renewed.Data
"""


@pytest.fixture
def folder(project):
    return project("renewed", MODULE, CONFIG)


@pytest.fixture
def command(folder, prune_cli):
    return lambda name, *options: prune_cli(name, "--config", "recipe.yaml", *options)


def measure(state, batches):
    """Return the mean over batches of the mean and variance that the normalization sees."""
    from renewed import Data

    loader = Data().train_dataloader()
    inputs = [images for (images, _), _ in zip(loader, range(batches), strict=False)]
    made = [images @ state["net.0.weight"].T + state["net.0.bias"] for images in inputs]
    return [
        torch.stack([find(each, 0) for each in made]).mean(0) for find in (torch.mean, torch.var)
    ]


@pytest.mark.filterwarnings("ignore:.*recipe.yaml' is of another origin")
def test_a_training_that_ends_with_an_update_names_the_command_which_changes_nothing_else(
    command, folder, capsys
):
    with pytest.warns(UserWarning, match="lightning-prune reestimate --config"):
        command("fit")
    before = torch.load("last.ckpt", weights_only=True)
    capsys.readouterr()
    command("reestimate", "--ckpt_path", "last.ckpt", "--statistics", "3")
    printed = capsys.readouterr().out
    assert "normalizations with new statistics: 1, from 3 batches" in printed
    assert "reestimated" in printed
    assert "val_loss" in printed
    assert "written: last-reestimated.ckpt" in printed
    after = torch.load("last-reestimated.ckpt", weights_only=True)
    assert str(after | {"state_dict": {}}) == str(before | {"state_dict": {}})
    old, new = before["state_dict"], after["state_dict"]
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed == {
        f"net.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")
    }
    mean, variance = measure(old, 3)
    torch.testing.assert_close(new["net.1.running_mean"], mean)
    torch.testing.assert_close(new["net.1.running_var"], variance)
    options = "--trainer.max_epochs", "2", "--trainer.default_root_dir", "again"
    command("fit", "--ckpt_path", "last-reestimated.ckpt", *options)


def test_a_shrunk_checkpoint_gets_new_statistics_too(command, folder):
    from renewed import Model

    model = Model()
    first, norm, _, last = model.net
    with torch.no_grad():
        for rows in (first.weight, first.bias, norm.weight, norm.bias, last.weight.T):
            rows[5:] = 0.0
    state = {"state_dict": model.state_dict(), "pytorch-lightning_version": "2.6.0"}
    torch.save(state | {"epoch": 0, "global_step": 0}, "last.ckpt")
    command("shrink", "--ckpt_path", "last.ckpt")
    command("reestimate", "--ckpt_path", "last-shrunk.ckpt", "--output", "new/small.ckpt")
    new = torch.load("new/small.ckpt", weights_only=True)["state_dict"]
    mean, _ = measure(model.state_dict(), 4)
    torch.testing.assert_close(new["net.1.running_mean"], mean[:5])
    command("validate", "--ckpt_path", "new/small.ckpt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.has_norm", "false"], "need batch normalizations with running statistics, got n"),
        (
            ["--ckpt_path", "absent.ckpt"],
            "need an existing checkpoint, got ckpt_path='absent.ckpt'",
        ),
        (["--output", "last.ckpt"], "need an output other than ckpt_path, got output='last.ckpt'"),
        (["--statistics", "0"], "need statistics >= 1, got statistics=0"),
        (["--trainer.limit_train_batches", "0"], "new statistics, got limit_train_batches=0"),
    ],
)
def test_errors_come_without_a_traceback_and_leave_no_file(
    options, message, command, folder, capsys
):
    from renewed import Model

    has_norm = "--model.has_norm" not in options
    state = {"state_dict": Model(has_norm).state_dict(), "pytorch-lightning_version": "2.6.0"}
    torch.save(state | {"epoch": 0, "global_step": 0}, "last.ckpt")
    with pytest.raises(SystemExit):
        command("reestimate", "--ckpt_path", "last.ckpt", *options)
    assert message in capsys.readouterr().err
    assert not list(folder.glob("**/*reestimated*"))
