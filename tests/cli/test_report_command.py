import csv
import importlib.util
import json

import pytest
import torch

MODULE = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Model(LightningModule):
    def __init__(self, width: int = 6):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, width), nn.BatchNorm1d(width), nn.Linear(width, 4))

    def forward(self, values):
        return self.net(values)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class WithExample(Model):
    def __init__(self):
        super().__init__()
        self.example_input_array = torch.randn(5, 16)


class WithScale(Model):
    def forward(self, values, *, scale):
        return scale * super().forward(values)

    def validation_step(self, batch, batch_idx):
        self(batch[0], scale=torch.tensor(2.0))


class WithoutForward(Model):
    def validation_step(self, batch, batch_idx):
        self.net(batch[0])


class Data(LightningDataModule):
    def val_dataloader(self):
        return DataLoader(TensorDataset(torch.randn(40, 16), torch.arange(40) % 4), batch_size=8)
"""

CONFIG = """
seed_everything: 1
trainer:
  accelerator: cpu
  logger: {class_path: CSVLogger, init_args: {save_dir: logs}}
  enable_progress_bar: false
model: small.Model
data: small.Data
"""


@pytest.fixture
def folder(project):
    folder = project("small", MODULE, CONFIG)
    weight = torch.randn(6, 16)
    weight[:, :8] = 0
    state = {"net.0.weight": weight, "net.0.bias": torch.randn(6), "net.1.weight": torch.ones(6)}
    state |= {"net.1.bias": torch.ones(6), "net.1.running_mean": torch.ones(6)}
    state |= {"net.1.running_var": torch.ones(6), "net.1.num_batches_tracked": torch.tensor(3)}
    state |= {"net.2.weight": torch.randn(4, 6), "net.2.bias": torch.zeros(4)}
    torch.save({"state_dict": state, "pytorch-lightning_version": "2.6.0"}, "sparse.ckpt")
    return folder


@pytest.fixture
def main(folder, prune_cli):
    given = ["report", "--config", "recipe.yaml", "--ckpt_path", "sparse.ckpt"]
    return lambda *arguments: prune_cli(*given, *arguments)


def test_a_checkpoint_is_reported_on_and_only_read(main, folder, capsys):
    before = (folder / "sparse.ckpt").read_bytes()
    main("--latency", "false", "--output", "new/all")
    printed = capsys.readouterr().out
    assert "Model on 1 x 16 float32" in printed
    assert "channels: 8 of 16 inputs" in printed
    assert "0.4000 of the prunable weights are zero" in printed  # 48 of 96 and 24
    assert "written: new/all/report.json, new/all/report.csv, new/all/report.md" in printed
    assert (folder / "sparse.ckpt").read_bytes() == before
    assert not (folder / "logs").exists()
    rows = list(csv.DictReader((folder / "new/all/report.csv").read_text().splitlines()))
    assert [row["effective_macs"] for row in rows] == ["48", "0", "24", "72"]


def test_latencies_are_measured_as_asked_for(main, folder, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # leaves ONNX out
    main("--blocks", "6", "--threads", "2", "--output", "report.json")
    (measured,) = json.loads((folder / "report.json").read_text())["latencies"]
    assert (measured["runtime"], measured["threads"], measured["blocks"]) == ("torch", 2, 6)
    printed = " ".join(capsys.readouterr().out.split())
    assert "in torch (cpu, 2 threads, 6 x" in printed
    assert "pip install 'lightning-prune[export]'" in printed


@pytest.mark.parametrize(
    ("arguments", "example"),
    [
        (["--batch_size", "3"], "Model on 3 x 16 float32"),
        (["--model", "small.WithExample"], "WithExample on 5 x 16 float32"),
        (["--model", "small.WithScale"], "WithScale on 1 x 16 float32, scalar float32"),
    ],
)
def test_the_example_is_the_models_or_samples_of_a_batch(arguments, example, main, capsys):
    main("--latency", "false", *arguments)
    assert example in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ckpt_path", "no.ckpt"], "need an existing checkpoint, got ckpt_path='no.ckpt'"),
        (["--outptu", "y"], "did you mean 'output'?"),
        (["--output", "report.txt"], "need a folder or a .json, .csv or .md file, got output="),
        (["--batch_size", "0"], "need batch_size >= 1, got batch_size=0"),
        (["--trainer.devices", "2"], "need one process to report, got world_size=2; set devices=1"),
        (["--model.width", "5"], "need a checkpoint of the model, got ckpt_path='sparse.ckpt'"),
        (["--blocks", "5"], "need blocks >= 6, got blocks=5"),
        (
            ["--model", "small.WithoutForward"],
            "need an example of the arguments of forward, got no call of forward in "
            "validation_step; set self.example_input_array",
        ),
    ],
)
def test_a_wrong_option_is_explained(arguments, message, main, capsys):
    with pytest.raises(SystemExit) as end:
        main(*arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err
