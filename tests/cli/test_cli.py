import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.commands import run_command

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
def folder(project):
    return project("toy", MODULE, CONFIG)


@pytest.fixture
def main(folder, prune_cli):
    return lambda arguments: prune_cli(*arguments)


def test_fit_runs_code_of_the_current_directory(folder):
    command = Path(sys.executable).with_name("lightning-prune")
    arguments = ["--config", "recipe.yaml", "--trainer.enable_checkpointing", "true"]
    run = run_command(command, "fit", *arguments, environment={"COLUMNS": "120"})
    assert "To be pruned" in run.stdout
    assert "0.7500" in run.stdout
    assert "dense (sparsity null): net.bias" in run.stdout


def test_the_other_subcommands_work_on_its_checkpoint(main, folder, capsys):
    main(["fit", "--config=recipe.yaml", "--trainer.logger", "TensorBoardLogger"])
    (checkpoint,) = folder.glob("**/*.ckpt")
    tensorboard, report = capsys.readouterr().out.splitlines()[-2:]
    assert tensorboard.endswith("tensorboard --logdir logs/lightning_logs")
    path = checkpoint.relative_to(folder)
    assert report.endswith(f"lightning-prune report --config=recipe.yaml --ckpt_path {path}")
    for command in ("validate", "test", "predict"):
        main([command, "--config", "recipe.yaml", "--ckpt_path", str(checkpoint)])
    assert capsys.readouterr().out.count("val_acc") >= 2


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
        ("0.75,", "high,", "need sparsity['*'] as a number or None, got sparsity['*']='high'"),
        ('{"*": 0.75, "*.bias": null}', "{1: 0.75}", "got sparsity={1: 0.75}; write sparsity={'1'"),
        (
            '{"*": 0.75, "*.bias": null}',
            "[0.75]",
            "need sparsity as a number, a mapping of strings to numbers or None or None",
        ),
        ("n: 1,", "n: 1.5,", "argument 'n' of lightning_prune.NMPattern: need n as a whole number"),
        ("begin: 0.1", "unit: steps", "got unit='steps'; write unit='step'"),
        (
            "allocation: GlobalAllocation",
            "allocation: ''",
            "got allocation=''; write allocation=None",
        ),
        ("allocation: GlobalAllocation", "keep_zeros: maybe", "need keep_zeros as True or False, "),
        ("allocation: GlobalAllocation", "rewind: {to: 1.5}", "need to as a whole number, got to="),
        ("allocation: GlobalAllocation", "regrow: {criterion: NMPattern}", "got criterion='NMPat"),
        ("toy.Data", "{class_path: toy.Data, init_args: {batch_size: x}}", "got batch_size='x'"),
        *(
            ("allocation: GlobalAllocation", f"budget: {wrong}", message)
            for wrong, message in (
                ("{class_path: MacBudget}", "did you mean 'MacsBudget'? It can be: BytesBudget, "),
                ("{class_path: MacsBudget, init_args: {kep: 1}}", "did you mean 'keep'? It can be"),
                ("[{class_path: MacBudget}]", "need budget[0] as a Budget (BytesBudget, "),
                ("[{class_path: MacsBudget, init_args: {kep: 1}}]", "did you mean 'keep'?"),
                ("MacsBudget", "need exactly one of keep and at_most in MacsBudget, got keep=None"),
                ("{class_path: MacsBudget, init_args: {keep: 2}}", "write at_most=2"),
                ("0.5", "need budget as a Budget (BytesBudget, "),
                ("[]", "need at least one budget, got budget=[]; leave it out"),
                (
                    "{class_path: MacsBudget, init_args: {keep: 0.5}}",
                    "MacsBudget(keep=0.5), got pattern=NMPattern(n=1, m=4), which says how much",
                ),
            )
        ),
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


@pytest.fixture
def checkpoint(main, folder):
    config = CONFIG.replace('{"*": 0.75, "*.bias": null}', "0.0")
    (folder / "dense.yaml").write_text(config)
    main(["fit", "--config", "dense.yaml"])
    (path,) = folder.glob("**/*.ckpt")
    return path.rename(folder / "dense.ckpt")


def files(folder):
    return {
        str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache" not in str(path)
    }


@pytest.mark.slow
def test_prune_writes_a_checkpoint_that_test_and_fit_take(main, folder, checkpoint, capsys):
    before = files(folder)
    main(["prune", "--config", "recipe.yaml", "--ckpt_path", "dense.ckpt"])
    assert files(folder) - before == {"dense-pruned.ckpt"}
    printed = capsys.readouterr().out
    assert "at sparsity 0.7500" in printed
    assert "written: dense-pruned.ckpt" in printed
    next_step = "lightning-prune fit --config recipe.yaml --ckpt_path dense-pruned.ckpt"
    assert printed.splitlines()[-1].startswith("now: ")
    assert printed.splitlines()[-1].endswith(next_step)
    weight = torch.load("dense-pruned.ckpt", weights_only=True)["state_dict"]["net.weight"]
    assert (weight == 0).float().mean() == 0.75
    main(["test", "--config", "recipe.yaml", "--ckpt_path", "dense-pruned.ckpt"])
    assert "val_acc" in capsys.readouterr().out
    main(["fit", "--config", "recipe.yaml", "--ckpt_path", "dense-pruned.ckpt"])
    (trained,) = folder.glob("logs/**/*.ckpt")
    trained = torch.load(trained, weights_only=True)
    assert trained["global_step"] == 20
    assert torch.equal(trained["state_dict"]["net.weight"] == 0, weight == 0)


@pytest.mark.slow
def test_prune_repairs_on_the_command_line_and_from_a_config(main, folder, checkpoint, capsys):
    states = {}
    (folder / "repair.yaml").write_text(CONFIG + "repair: {damping: 0.02}\n")
    for name, config, options in [
        ("plain.ckpt", "recipe.yaml", []),
        ("line.ckpt", "recipe.yaml", ["--repair", "{damping: 0.02}"]),
        ("dotted.ckpt", "recipe.yaml", ["--repair.damping", "0.02"]),
        ("config.ckpt", "repair.yaml", []),
    ]:
        shared = ["--ckpt_path", "dense.ckpt", "--batches", "4", "--output", name]
        main(["prune", "--config", config, *shared, *options])
        states[name] = torch.load(name, weights_only=True)["state_dict"]["net.weight"]
        assert ("Repaired" in capsys.readouterr().out) == (name != "plain.ckpt")
    assert torch.equal(states["line.ckpt"], states["config.ckpt"])
    assert torch.equal(states["line.ckpt"], states["dotted.ckpt"])
    assert not torch.equal(states["line.ckpt"], states["plain.ckpt"])
    assert (states["line.ckpt"] == 0).sum() == (states["plain.ckpt"] == 0).sum()


@pytest.mark.slow
def test_sensitivity_writes_what_a_config_takes(main, folder, checkpoint, capsys):
    before, state = files(folder), checkpoint.read_bytes()
    arguments = ["--ckpt_path", "dense.ckpt", "--monitor", "val_acc", "--mode", "max"]
    arguments += ["--sparsities", "[0.75, 0.9]", "--tolerance", "1", "--output", "out/new"]
    main(["sensitivity", "--config", "recipe.yaml", *arguments])
    names = {f"out/new/sensitivity.{kind}" for kind in ("csv", "yaml", "png")}
    assert files(folder) - before == {"out", "out/new", *names}
    assert checkpoint.read_bytes() == state
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].endswith(
        "lightning-prune fit --config recipe.yaml --pruning out/new/sensitivity.yaml"
    )
    assert "val_acc with one tensor pruned" in printed
    assert "within 1" in printed
    sparsity = (folder / "out/new/sensitivity.yaml").read_text()
    assert yaml.safe_load(sparsity) == {"sparsity": {"net.weight": 0.9}}
    config = yaml.safe_load(CONFIG)
    config["trainer"]["callbacks"][0]["init_args"].update(yaml.safe_load(sparsity))
    (folder / "next.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", "next.yaml"])
    assert "0.9062" in capsys.readouterr().out  # 58 of 64, as 1:4 allows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune"], "need a value for --ckpt_path, got none; write it"),
        (["prune", "--ckpt_path", "no.ckpt"], "need an existing checkpoint, got ckpt_path='no.ck"),
        (["prune", "--ckpt_path", "x", "--outptu", "y"], "did you mean 'output'?"),
        (["prune", "--ckpt_path", "x", "--batches", "0"], "need batches >= 1, got batches=0"),
        (["sensitivity", "--tolerance", "-1"], "need a finite tolerance >= 0, got tolerance=-1.0"),
        (["sensitivity", "--tolerence", "1"], "did you mean 'tolerance'?"),
        (["sensitivity", "--mode", "maxx"], "maxx"),
        (["sensitivity", "--batches", "few"], "need a whole number for --batches, got few"),
        (
            ["prune", "--trainer.max_epochs", "x"],
            "need a whole number or null for --trainer.max_epochs, ",
        ),
        (["prune", "--config", "no.yaml"], "need an existing file, got --config "),
        (["sensitivity", "--output", "toy.py"], "need a folder to write to, got the file output"),
        (["sensitivity", "--sparsities", "[0.5]"], "need sparsity 0 or at least 1 - n/m = 0.75"),
        (["sensitivity", "--trainer.callbacks", "null"], "need a PruningCallback among the"),
    ],
)
def test_what_is_not_training_explains_a_wrong_option(arguments, message, main, folder, capsys):
    command, *rest = arguments
    given = ["--config", "recipe.yaml"]
    if command == "sensitivity":
        given += ["--ckpt_path", "x", "--monitor", "val_acc", "--mode", "max"]
    with pytest.raises(SystemExit) as end:
        main([command, *given, *rest])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_a_metric_that_is_not_logged_is_explained(main, folder, checkpoint, capsys):
    arguments = ["--ckpt_path", "dense.ckpt", "--monitor", "val_ac", "--mode", "max"]
    with pytest.raises(SystemExit):
        main(["sensitivity", "--config", "recipe.yaml", *arguments, "--sparsities", "[0.75]"])
    said = "got monitor='val_ac'; validation logs 'val_acc'; did you mean 'val_acc'?"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=val_ac"],
            "could not find the monitored key",
        ),
        (
            ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val_ac"],
            "metric `val_ac` which is not available",
        ),
    ],
)
def test_a_metric_that_lightning_does_not_find_is_guessed(options, said, main, folder, capsys):
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", "recipe.yaml", *options])
    assert end.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert said in error
    assert error.endswith("; did you mean 'val_acc'?")
