"""The subcommand search."""

import pytest
import torch
import yaml

from tests.cli.modules import CLASSIFIER

CONFIG = """
seed_everything: 1
trainer:
  accelerator: cpu
  logger: false
  enable_progress_bar: false
  enable_checkpointing: false
  callbacks:
    - class_path: lightning_prune.PruningCallback
model: searched.Model
data: searched.Data
"""

GIVEN = ["--config", "recipe.yaml", "--ckpt_path", "dense.ckpt", "--monitor", "val_acc"]
GIVEN += [
    "--mode",
    "max",
    "--batches",
    "2",
    "--statistics",
    "2",
    "--trials",
    "4",
    "--sparsities",
    "[0.5, 0.9]",
]
FILES = {f"search.{kind}" for kind in ("csv", "yaml", "png", "ckpt")} | {"search_curves.csv"}


@pytest.fixture
def folder(project):
    folder = project("searched", CLASSIFIER, CONFIG)
    from searched import Model

    state = {"state_dict": Model().state_dict(), "pytorch-lightning_version": "2.6.0"}
    torch.save(state | {"epoch": 0, "global_step": 0}, "dense.ckpt")
    return folder


@pytest.fixture
def search(folder, prune_cli):
    return lambda *options: prune_cli("search", *GIVEN, *options)


def test_a_tolerance_gives_files_that_other_commands_take(search, folder, prune_cli, capsys):
    before = (folder / "dense.ckpt").read_bytes()
    search("--tolerance", "0.1", "--output", "out/new")
    printed = capsys.readouterr().out
    assert "search: at most 8 validations" in printed
    assert "at most 2 training batches before each, for new statistics" in printed
    assert "all together" in printed
    assert {path.name for path in (folder / "out" / "new").iterdir()} == FILES
    assert (folder / "dense.ckpt").read_bytes() == before
    found = yaml.safe_load((folder / "out/new/search.yaml").read_text())["sparsity"]
    assert set(found) == {"net.0.weight", "net.3.weight"}
    prune_cli("validate", "--config", "recipe.yaml", "--ckpt_path", "out/new/search.ckpt")
    assert "val_acc" in capsys.readouterr().out


def test_a_later_search_reuses_the_curves(search, folder, capsys):
    search("--tolerance", "0.1")
    capsys.readouterr()
    search("--budget", "ParameterBudget", "--budget.keep", "0.6", "--plot", "false")
    printed = capsys.readouterr().out
    assert "(4 more are known from an earlier search)" in printed
    assert "parameters, 0." in printed


@pytest.mark.parametrize("budget", ["{class_path: MacsBudget, init_args: {keep: 0.6}}", None])
def test_a_budget_can_be_yaml_or_a_short_name(budget, search, capsys):
    short = ["--budget", "MacsBudget", "--budget.keep", "0.6"]
    search(*(["--budget", budget] if budget else short), "--plot", "false")
    # Validation gives the example: 16 x 8 and 8 x 4 multiplications.
    assert "macs, 0.5" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "need exactly one of tolerance and budget, got tolerance=None and budget=None"),
        (["--tolerance", "-1"], "need a finite tolerance >= 0, got tolerance=-1.0"),
        (["--tolerance", "1", "--budget", "ParameterBudget", "--budget.keep", "0.5"], "need exact"),
        (
            ["--tolerance", "1", "--monitor", "val_ac"],
            "monitor='val_ac'; validation logs 'val_acc'; did you mean 'val_acc'?",
        ),
        (["--tolerance", "1", "--trials", "0"], "need trials >= 1, got trials=0"),
        (["--tolerance", "1", "--output", "searched.py"], "need a folder to write to, got the fil"),
        (["--tolerance", "1", "--trainer.callbacks", "null"], "need a PruningCallback among the"),
        (["--tolerance", "1", "--statistics", "-1"], "need statistics >= 0, got statistics=-1"),
        (["--budget", "ParameterBudget", "--budget.keep", "2"], "need 0 < keep < 1"),
        (["--budget", "ParametrBudget"], "did you mean 'ParameterBudget'?"),
        (["--tolerence", "1"], "did you mean 'tolerance'?"),
    ],
)
def test_a_wrong_option_is_explained(options, message, search, capsys):
    with pytest.raises(SystemExit) as end:
        search(*options)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


DEMO = """
seed_everything: 0
trainer:
  max_epochs: 2
  devices: 1
  accelerator: cpu
  logger: {class_path: CSVLogger, init_args: {save_dir: logs}}
  enable_progress_bar: false
model: examples.digits.DigitsClassifier
data: examples.digits.DigitsDataModule
"""
CALLBACK = "--trainer.callbacks={class_path: lightning_prune.PruningCallback}"


@pytest.mark.slow
def test_the_demo_keeps_to_the_tolerance(project, prune_cli, capsys):
    folder = project("unused", "", DEMO)
    prune_cli("fit", "--config", "recipe.yaml")
    (checkpoint,) = folder.glob("**/*.ckpt")
    options = ["--ckpt_path", checkpoint, "--monitor", "val_acc", "--mode", "max"]
    options += ["--tolerance", "0.01", "--sparsities", "[0.5, 0.9]", "--trials", "4"]
    prune_cli("search", "--config", "recipe.yaml", CALLBACK, *options)
    capsys.readouterr()
    accuracies = []
    for path in (checkpoint, "search/search.ckpt"):
        prune_cli("validate", "--config", "recipe.yaml", CALLBACK, "--ckpt_path", path)
        row = next(line for line in capsys.readouterr().out.splitlines() if "val_acc" in line)
        accuracies.append(float(row.split("│")[2]))
    assert accuracies[1] >= accuracies[0] - 0.01 - 1e-6
    found = yaml.safe_load((folder / "search" / "search.yaml").read_text())["sparsity"]
    assert any(found.values())
