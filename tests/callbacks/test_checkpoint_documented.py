"""The options of a SparsityCheckpoint in YAML, and the snippets of the page about it."""

import re
import sys
from datetime import timedelta
from functools import partial

import pytest
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lightning_prune import PruningCallback, SparsityCheckpoint
from lightning_prune.callbacks.namespace import join
from lightning_prune.cli.command import PruneArgumentParser, PruneCLI
from tests.callbacks.best_models import SECTION, Level, best, epochs, works_with, zeros
from tests.callbacks.conftest import Classifier
from tests.commands import ROOT

PAGE = ROOT / "docs" / "works_with.md"


@works_with("LightningCLI YAML with the arguments of `ModelCheckpoint`")
def test_a_config_takes_every_argument_of_a_model_checkpoint(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lightning-prune"])
    arguments = {
        "sparsity": 0.8,
        "dirpath": str(tmp_path),
        "filename": "{epoch}-{sparsity:.2f}",
        "monitor": "val_loss",
        "verbose": True,
        "save_last": "link",
        "save_top_k": 2,
        "save_on_exception": True,
        "save_weights_only": True,
        "mode": "max",
        "auto_insert_metric_name": False,
        "every_n_train_steps": None,
        "train_time_interval": "0:10:00",
        "every_n_epochs": None,
        "save_on_train_epoch_end": False,
        "enable_version_counter": False,
    }

    def parse(name="SparsityCheckpoint", **more):
        callbacks = [
            {"class_path": "lightning_prune.PruningCallback"},
            {"class_path": name, "init_args": arguments | more},
        ]
        config = tmp_path / "config.yaml"
        trainer = {"accelerator": "cpu", "logger": False, "callbacks": callbacks}
        config.write_text(yaml.safe_dump({"trainer": trainer}))
        return cli("--config", str(config))

    def cli(*args):
        return join(PruneCLI, LightningCLI)(
            Classifier,
            args=list(args),
            run=False,
            seed_everything_default=False,
            parser_class=join(PruneArgumentParser, LightningArgumentParser),
        )

    for name in ("SparsityCheckpoint", "lightning_prune.SparsityCheckpoint"):
        checkpoint = parse(name).trainer.checkpoint_callback
        assert isinstance(checkpoint, SparsityCheckpoint)
        assert checkpoint.sparsity == 0.8
        assert checkpoint.save_last == "link"
        assert repr(timedelta(minutes=10)) in checkpoint.state_key
    with pytest.raises(SystemExit):
        parse("lightning_prune.SparsityCheckpoint", monitr="val_loss")
    shown = capsys.readouterr().err
    assert (
        "did you mean 'monitor'? It can be: sparsity, budget_met, dirpath, filename, monitor"
        in shown
    )
    with pytest.raises(SystemExit):
        parse(sparsity=1.5)
    assert "need 0 <= sparsity <= 1, got sparsity=1.5" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli("--trainer.callbacks.help=SparsityCheckpoint")
    shown = capsys.readouterr().out
    assert set(re.findall(r"--trainer\.callbacks\.(\w+)", shown)) >= set(arguments)


def test_lightning_saves_its_best_models_through_the_one_method_that_is_overridden(fit, tmp_path):
    """A private method of Lightning's: where it is gone, every model would be considered."""

    class Deaf(ModelCheckpoint):
        def _save_topk_checkpoint(self, trainer, monitor_candidates):
            assert "score" in monitor_candidates

    private = {name for name in vars(SparsityCheckpoint) if hasattr(ModelCheckpoint, name)}
    assert {name for name in private if re.match("_[a-z]", name)} == {"_save_topk_checkpoint"}
    fit(Deaf(tmp_path / "deaf", monitor="score"), best(dirpath=tmp_path / "best"))
    assert epochs(tmp_path / "deaf") == []
    assert epochs(tmp_path / "best") == [4]


def blocks() -> list[str]:
    section = PAGE.read_text().split(f"## {SECTION}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


@works_with("`EarlyStopping` that begins when pruning has ended")
def test_the_snippets_of_the_page_do_what_it_says(loader, tmp_path, monkeypatch):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    small = {"accelerator": "cpu", "default_root_dir": tmp_path, "limit_train_batches": 2}
    monkeypatch.setattr("lightning.pytorch.Trainer", partial(Trainer, **quiet, **small))
    names = dict.fromkeys(("train_loader", "val_loader", "test_loader"), loader)
    for block in blocks():
        names["model"] = Level()
        exec(block, names)
    assert zeros(names["best"].best_model_path) == round(0.9 * (16 * 32 + 32 * 4))
    # Pruning ends in epoch 15. Three later epochs do not better its score.
    assert names["stopping"].stopped_epoch == 13


def test_early_stopping_alone_stops_before_pruning_has_ended(make_trainer, loader):
    stopping = EarlyStopping(monitor="val_acc", mode="max", patience=3)
    trainer = make_trainer(PruningCallback(), stopping, max_epochs=20, limit_train_batches=2)
    with pytest.warns(UserWarning, match="training stopped before the schedule's end"):
        trainer.fit(Level(), loader, loader)
    assert stopping.stopped_epoch == 3
