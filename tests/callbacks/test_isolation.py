import csv
import random

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from lightning_prune import PruningCallback, RandomCriterion, SparsityMonitor
from tests.callbacks.conftest import Classifier

SECTION = "Isolation"
OURS = ("sparsity", "mask_change")


class Trained(Classifier):
    """With dropout, augmentation, a learning rate schedule, and metrics of every kind."""

    def __init__(self):
        super().__init__()
        self.net.insert(2, nn.Dropout(0.5))

    def training_step(self, batch, batch_idx):
        x, y = batch
        x = x + 0.1 * random.random() + 0.1 * np.random.rand()  # noqa: NPY002
        loss = super().training_step((x, y), batch_idx)
        self.log("loss", loss, on_step=True, on_epoch=True, batch_size=len(y))
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Everything(Callback):
    """Keeps all that pruning must not touch, after each batch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(
            [
                batch_idx,
                trainer.global_step,
                outputs["loss"].item(),
                batch[0].tolist(),
                trainer.optimizers[0].param_groups[0]["lr"],
                [p.tolist() for p in pl_module.parameters()],
                torch.get_rng_state().tolist(),
                random.getstate(),
                np.random.get_state()[1].tolist(),  # noqa: NPY002
            ]
        )


@pytest.fixture
def run(make_trainer, loader, tmp_path):
    """Train with callbacks; return what was seen, and what was logged at which step."""

    def run(name, *callbacks, every=1, **kwargs):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        everything, logger = Everything(), CSVLogger(tmp_path, name, version=0)
        model = Trained()
        trainer = make_trainer(
            *callbacks, everything, max_epochs=3, logger=logger, log_every_n_steps=every, **kwargs
        )
        shuffled = DataLoader(loader.dataset, batch_size=8, shuffle=True)
        trainer.fit(model, shuffled, loader)
        with (tmp_path / name / "version_0" / "metrics.csv").open() as file:
            rows = [
                {k: v for k, v in row.items() if v and not k.startswith(OURS)}
                for row in csv.DictReader(file)
            ]
        return everything.seen, [row for row in rows if set(row) - {"step", "epoch"}]

    return run


@pytest.mark.works_with(
    SECTION,
    "sparsity 0: bit for bit the run without our callbacks: weights, data, dropout, learning "
    "rate, random states of Python, NumPy and torch, and every row of a CSV log except ours",
)
@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("monitored", [False, True], ids=["alone", "with SparsityMonitor"])
def test_sparsity_zero_is_bit_for_bit_the_run_without_it(monitored, accumulate, every, run):
    kwargs = {"every": every, "accumulate_grad_batches": accumulate}
    alone = run("alone", **kwargs)
    callbacks = [PruningCallback(sparsity=0.0)] + [SparsityMonitor("val_acc")] * monitored
    together = run("together", *callbacks, **kwargs)
    assert together == alone
    assert len(alone[0]) == 30
    assert len(alone[1]) > 6


@pytest.mark.works_with(
    SECTION,
    "any sparsity: data, learning rate, random states and steps of all logs stay the same",
)
@pytest.mark.parametrize("criterion", [None, RandomCriterion()], ids=["magnitude", "random"])
@pytest.mark.parametrize("monitored", [False, True], ids=["alone", "with SparsityMonitor"])
def test_pruning_draws_no_random_numbers_and_moves_no_log(monitored, criterion, run):
    def outside(seen):
        return [[*batch[:2], *batch[3:5], *batch[6:]] for batch in seen]

    def places(rows):
        return [(row["step"], row["epoch"], sorted(row)) for row in rows]

    alone = run("alone", every=4)
    pruning = PruningCallback(sparsity=0.75, criterion=criterion)
    together = run("together", pruning, *[SparsityMonitor("val_acc")] * monitored, every=4)
    assert pruning.sparsity == 0.75
    assert outside(together[0]) == outside(alone[0])
    assert places(together[1]) == places(alone[1])


@pytest.mark.works_with(SECTION, "our metrics come at the steps of Lightning's own metrics")
def test_our_metrics_keep_the_cadence_of_the_trainer(run, tmp_path):
    run("together", PruningCallback(sparsity=0.75), every=4)
    with (tmp_path / "together" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    ours = [int(row["step"]) for row in rows if row["sparsity"]]
    theirs = [int(row["step"]) for row in rows if row["loss_step"]]
    assert ours == theirs == [3, 7, 11, 15, 19, 23, 27]
