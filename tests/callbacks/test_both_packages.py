"""The same callbacks in the Trainers of `lightning` and of `pytorch_lightning`.

``LIGHTNING=pytorch_lightning pytest tests/callbacks`` runs all tests of this folder in the second.
"""

import os
from importlib import import_module
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import (
    DistillationCallback,
    PolynomialSchedule,
    PruningCallback,
    SparsityCheckpoint,
    SparsityMonitor,
    prune_once,
    reestimate_statistics,
)
from tests.commands import run_python

pytestmark = pytest.mark.skipif(
    os.environ.get("LIGHTNING") == "pytorch_lightning", reason="needs both packages as they are"
)
NAMES = ("lightning.pytorch", "pytorch_lightning")


def make_model(name):
    """Return a model of a package; its weights are those of the other package's model."""

    class Model(import_module(name).LightningModule):
        def __init__(self):
            super().__init__()
            with torch.random.fork_rng():
                torch.manual_seed(0)
                self.net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            self.log("accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

        def forward(self, x):
            return self.net(x)

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=0.01)

        def train_dataloader(self):
            generator = torch.Generator().manual_seed(0)
            y = torch.arange(80) % 4
            x = torch.randn(80, 16, generator=generator)
            return DataLoader(TensorDataset(x + 3 * nn.functional.one_hot(y, 16), y), batch_size=8)

        val_dataloader = train_dataloader

    return Model()


def make_trainer(name, folder, *callbacks, **options):
    silent = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": 2,
        "log_every_n_steps": 1,
    }
    trainer = import_module(name).Trainer
    return trainer(callbacks=list(callbacks), default_root_dir=folder, **{**silent, **options})


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.mark.works_with(
    "Other trainers", "`pytorch_lightning`: exact, with pictures, tables and the best checkpoint"
)
def test_a_training_lands_exactly_with_pictures_tables_and_the_best_checkpoint(name, tmp_path):
    board = import_module(f"{name}.loggers").TensorBoardLogger(tmp_path)
    pruning = PruningCallback(sparsity=0.75)
    best = SparsityCheckpoint(monitor="accuracy", mode="max", dirpath=tmp_path / "sparse")
    monitor = SparsityMonitor(quality="accuracy", histograms_every=1)
    trainer = make_trainer(name, tmp_path, pruning, monitor, best, logger=board)
    model = make_model(name)
    trainer.fit(model)
    assert pruning.sparsity == 0.75
    assert sum(int((layer.weight == 0).sum()) for layer in (model.net[0], model.net[2])) == 480
    events = EventAccumulator(board.log_dir)
    events.Reload()
    tags = events.Tags()
    assert tags["images"] == ["accuracy_over_sparsity"]
    assert {"kept_weights/net.0.weight", "kept_weights/net.2.weight"} <= {*tags["histograms"]}
    assert {"recipe/text_summary", "sparsity/text_summary"} <= {*tags["tensors"]}
    assert trainer.checkpoint_callback is best
    assert trainer.checkpoint_callbacks == [best]
    assert Path(best.best_model_path).parent == tmp_path / "sparse"


def test_a_single_callback_needs_no_list(name, tmp_path):
    callback = PruningCallback()
    trainer = import_module(name).Trainer
    assert callback in trainer(callbacks=callback, accelerator="cpu", logger=False).callbacks


@pytest.mark.works_with("Other trainers", "`pytorch_lightning`: resumed bit for bit")
def test_a_resumed_training_ends_with_the_same_bits(name, tmp_path):
    saving = import_module(f"{name}.callbacks").ModelCheckpoint

    def fit(**start):
        model, callbacks = make_model(name), (PruningCallback(), saving(tmp_path, save_top_k=-1))
        make_trainer(name, tmp_path, *callbacks, max_epochs=3).fit(model, **start)
        return model.state_dict()

    whole = fit()
    resumed = fit(ckpt_path=tmp_path / "epoch=0-step=10.ckpt")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_the_extra_epoch_of_swa_counts_for_no_fraction(name, tmp_path):
    averaging = import_module(f"{name}.callbacks").StochasticWeightAveraging
    pruning = PruningCallback(sparsity=0.75, schedule=PolynomialSchedule(begin=0.0, end=1.0))
    model = make_model(name)
    trainer = make_trainer(
        name, tmp_path, pruning, averaging(swa_lrs=0.01, swa_epoch_start=1), max_epochs=4
    )
    trainer.fit(model)
    assert pruning.sparsity == 0.75
    assert sum(int((layer.weight == 0).sum()) for layer in (model.net[0], model.net[2])) == 480


def test_a_teacher_teaches(name, tmp_path):
    teaching = DistillationCallback(output="net")
    trainer = make_trainer(name, tmp_path, PruningCallback(), teaching, max_epochs=1)
    trainer.fit(make_model(name))
    assert "distillation_loss" in trainer.callback_metrics


@pytest.mark.parametrize("callback", [PruningCallback(), DistillationCallback()])
def test_a_strategy_that_flattens_parameters_is_refused(name, callback, tmp_path):
    kind = import_module(f"{name}.strategies").FSDPStrategy
    trainer = make_trainer(name, tmp_path, callback)
    trainer.strategy.__class__ = type("Sharded", (kind,), {})
    with pytest.raises(ValueError, match="got Sharded; use"):
        callback.setup(trainer, make_model(name), "fit")


def test_a_save_at_the_end_of_an_epoch_is_warned_of(name, tmp_path):
    saving = import_module(f"{name}.callbacks").ModelCheckpoint(
        dirpath=tmp_path, every_n_train_steps=10
    )
    trainer = make_trainer(name, tmp_path, PruningCallback(), saving)
    with pytest.warns(UserWarning, match="saves at step 10, the last of an epoch"):
        trainer.fit(make_model(name))


def test_a_model_is_pruned_without_training(name, tmp_path):
    model = make_model(name)
    trainer = make_trainer(name, tmp_path, PruningCallback(sparsity=0.5))
    report = prune_once(trainer, model, output=tmp_path / "pruned.ckpt")
    assert report.pruner.sparsity == 0.5
    state = torch.load(tmp_path / "pruned.ckpt", weights_only=True)["state_dict"]
    assert int((state["net.0.weight"] == 0).sum()) + int((state["net.2.weight"] == 0).sum()) == 320


@pytest.mark.parametrize("run", [prune_once, reestimate_statistics])
def test_a_model_of_the_other_package_is_refused_with_the_cure(run, tmp_path):
    trainer = make_trainer(NAMES[1], tmp_path, PruningCallback())
    message = (
        "need module and data of pytorch_lightning, as the Trainer is, got Model of "
        "lightning.pytorch; import Trainer from lightning.pytorch, or let Model inherit from "
        "pytorch_lightning"
    )
    with pytest.raises(TypeError, match=message):
        run(trainer, make_model(NAMES[0]))


# The wanted lines are: pictures, histograms, whether the best checkpoint is the Trainer's, and the
# logger of Lightning's messages.
TRAINING = """
from pathlib import Path
import lightning_utilities.core.rank_zero as messages
from {name}.loggers import TensorBoardLogger
from tests.callbacks.test_both_packages import *

best = SparsityCheckpoint(monitor="accuracy", dirpath="sparse")
log = TensorBoardLogger("board")
monitor = SparsityMonitor(quality="accuracy", histograms_every=1)
trainer = make_trainer("{name}", ".", PruningCallback(), monitor, best, logger=log)
trainer.fit(make_model("{name}"))
events = EventAccumulator(log.log_dir)
events.Reload()
tags = events.Tags()
print(len(tags["images"]), len(tags["histograms"]), trainer.checkpoint_callback is best)
print(messages.log.name.partition(".")[0])
"""
OURS = "from lightning_prune import PruningCallback, SparsityCheckpoint, SparsityMonitor"


@pytest.mark.works_with("Other trainers", "`pytorch_lightning`: in any order of imports")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("imports", "logger"),
    [
        pytest.param(f"{OURS}\nimport pytorch_lightning", "lightning", id="ours first"),
        pytest.param(
            f"import pytorch_lightning\n{OURS}",
            "pytorch_lightning",
            marks=pytest.mark.rare,
            id="pytorch_lightning first",
        ),
        pytest.param(
            f"import sys\nsys.modules['lightning'] = None\n{OURS}",
            "pytorch_lightning",
            marks=pytest.mark.rare,
            id="pytorch_lightning alone",
        ),
    ],
)
def test_any_order_of_imports_gives_the_same(imports, logger, tmp_path):
    code = f"{imports}\n{TRAINING.format(name='pytorch_lightning')}"
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    run = run_python("-c", code, folder=tmp_path, environment=environment)
    assert run.stdout.splitlines()[-2:] == ["1 2 True", logger]


@pytest.mark.slow
def test_lightning_alone_suffices(tmp_path):
    code = f"""
import sys
sys.modules["pytorch_lightning"] = None
{OURS}
from lightning.pytorch.callbacks import Callback, Checkpoint
print(issubclass(SparsityMonitor, Callback), issubclass(SparsityCheckpoint, Checkpoint))
"""
    assert run_python("-c", code).stdout == "True True\n"


@pytest.mark.slow
def test_without_either_package_the_error_names_the_cure():
    code = """
import sys
sys.modules |= {"pytorch_lightning": None, "lightning": None}
try:
    from lightning_prune import PruningCallback
except ImportError as error:
    print(error)
"""
    said = run_python("-c", code).stdout
    assert said.startswith("need lightning or pytorch_lightning, got neither: ")
    assert said.endswith("; pip install lightning\n")
