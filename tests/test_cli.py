import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lightning_prune import cli

MODULE = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Model(LightningModule):
    def __init__(self, learning_rate: float = 0.01):
        super().__init__()
        self.learning_rate = learning_rate
        self.net = nn.Linear(16, 4)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_acc", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        return self.net(batch[0])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.learning_rate)


class Data(LightningDataModule):
    def __init__(self, batch_size: int = 8):
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self):
        y = torch.arange(80) % 4
        return DataLoader(TensorDataset(torch.randn(80, 16), y), batch_size=self.batch_size)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader
"""

CONFIG = """
seed_everything: 1
trainer:
  max_epochs: 2
  accelerator: cpu
  logger: {class_path: CSVLogger, init_args: {save_dir: logs}}
  enable_progress_bar: false
  callbacks:
    - class_path: lightning_prune.PruningCallback
      init_args:
        sparsity: {"*": 0.75, "*.bias": null}
        schedule: {class_path: PolynomialSchedule, init_args: {begin: 0.1, end: 0.7}}
        allocation: GlobalAllocation
        criterion: RandomCriterion
        pattern: {class_path: NMPattern, init_args: {n: 1, m: 4}}
    - class_path: lightning_prune.SparsityMonitor
model: toy.Model
data: toy.Data
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "toy.py").write_text(MODULE)
    (tmp_path / "recipe.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "toy", raising=False)
    return tmp_path


@pytest.fixture
def main(folder, monkeypatch):
    def run(arguments):
        monkeypatch.setattr(sys, "argv", ["lightning-prune", *arguments])
        cli.main()

    return run


def test_fit_runs_code_of_the_current_directory(folder):
    command = Path(sys.executable).with_name("lightning-prune")
    run = subprocess.run(
        [command, "fit", "--config", "recipe.yaml", "--trainer.enable_checkpointing", "true"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "120"},
    )
    assert "To be pruned" in run.stdout
    assert "0.7500" in run.stdout
    assert "dense (sparsity null): net.bias" in run.stdout


def test_the_other_subcommands_work_on_its_checkpoint(main, folder, capsys):
    main(["fit", "--config", "recipe.yaml"])
    (checkpoint,) = folder.glob("**/*.ckpt")
    for command in ("validate", "test", "predict"):
        main([command, "--config", "recipe.yaml", "--ckpt_path", str(checkpoint)])
    assert capsys.readouterr().out.count("val_acc") >= 2


def printed_config(main, capsys, name):
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", name, "--print_config"])
    assert end.value.code == 0
    return capsys.readouterr().out


def test_print_config_round_trips(main, folder, capsys):
    printed = printed_config(main, capsys, "recipe.yaml")
    (folder / "printed.yaml").write_text(printed)
    assert printed_config(main, capsys, "printed.yaml") == printed
    recipe = yaml.safe_load(printed)["trainer"]["callbacks"][0]["init_args"]
    assert recipe["sparsity"] == {"*": 0.75, "*.bias": None}
    assert recipe["schedule"]["init_args"]["begin"] == 0.1
    assert recipe["pattern"]["class_path"] == "lightning_prune.NMPattern"


def test_help_names_the_callbacks(main, folder, capsys):
    with pytest.raises(SystemExit) as end:
        main(["fit", "--help"])
    assert end.value.code == 0
    assert "PruningCallback" in capsys.readouterr().out


def test_a_number_in_quotes_is_a_number_in_yaml(main, folder, capsys):
    text = CONFIG.replace('{"*": 0.75, "*.bias": null}', '"0.75"')
    (folder / "recipe.yaml").write_text(text)
    main(["fit", "--config", "recipe.yaml"])
    assert "0.7500" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("PolynomialSchedule", "PolinomialSchedule", "did you mean 'PolynomialSchedule'?"),
        ("GlobalAllocation", "GlobalAlocation", "did you mean 'GlobalAllocation'?"),
        ("NMPattern", "NPattern", "did you mean 'NMPattern'? It can be: BlockPattern"),
        ("prune.PruningCallback", "prune.PrunningCallback", "did you mean 'PruningCallback'?"),
        ("lightning_prune.PruningC", "PrunningC", "did you mean 'PruningCallback'?"),
        ("begin: 0.1", "beginn: 0.1", "did you mean 'begin'? It can be: begin, end, every"),
        ("sparsity: {", "sparsty: {", "unknown argument 'sparsty' of lightning_prune.Pruning"),
        ("max_epochs", "max_epoch", "did you mean 'trainer.max_epochs'?"),
        ("toy.Model", "toy.Modell", "did you mean 'Model'?"),
        ("toy.Model", "toyy.Model", "unknown module 'toyy'"),
        ("begin: 0.1", "begin: 0.8", "need end >= begin=0.8, got end=0.7"),
        ("0.75,", "1.5,", "need 0 <= sparsity <= 1, got sparsity={'*': 1.5}"),
        ("0.75,", "0.5,", "need sparsity 0 or at least 1 - n/m = 0.75 for 1:4"),
    ],
)
def test_a_wrong_config_gets_an_error_that_names_the_candidates(
    right, wrong, message, main, folder, capsys
):
    assert right in CONFIG
    (folder / "recipe.yaml").write_text(CONFIG.replace(right, wrong))
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", "recipe.yaml"])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Does not validate against any" not in error


def test_a_second_pruning_callback_is_refused(main, folder, capsys):
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", "recipe.yaml", "--trainer.callbacks+=PruningCallback"])
    assert end.value.code == 2
    assert "need one PruningCallback in a Trainer, got two" in capsys.readouterr().err
