"""A gradient scaler that skips steps in a Trainer is asked only where the masks may change."""

import weakref

import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.plugins import MixedPrecision

from lightning_prune import OneShotSchedule, PolynomialSchedule, PruningCallback
from tests.accelerators import waits_of_the_host
from tests.callbacks.conftest import Classifier, Record


class Scaled(Classifier):
    """A classifier with AdamW."""

    def __init__(self, **options):
        super().__init__()
        self.options = options

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2, **self.options)


def make_plugin():
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0))


def infinite_at(batches):
    """Make the gradients of some batches infinite."""

    def spoil(trainer, module):
        if trainer.fit_loop.total_batch_idx in batches:
            module.net[0].weight.grad[0, 0] = float("inf")

    return LambdaCallback(on_after_backward=spoil)


@pytest.mark.parametrize("options", [{"foreach": False}, {"fused": True}], ids=["plain", "fused"])
def test_the_scaler_is_asked_only_where_an_update_is_due(options, make_trainer, loader):
    schedule = PolynomialSchedule(begin=2, end=8, every=2, unit="step")
    runs = []
    for batches in (set(), {1, 4, 5, 9}):
        pruning = PruningCallback(sparsity=0.75, schedule=schedule)
        record, waits, hook = Record(pruning), [], pruning.on_before_optimizer_step

        def count(*args, hook=hook, waits=waits):
            with waits_of_the_host() as counted:
                hook(*args)
            waits.append(len(counted))

        pruning.on_before_optimizer_step = count
        trainer = make_trainer(infinite_at(batches), pruning, record, plugins=make_plugin())
        trainer.fit(Scaled(**options), loader)
        asked = {index for index, number in enumerate(waits) if number}
        runs.append((record.sparsities, asked, pruning.pruner.steps))
    (whole, _, steps), (spoiled, asked, made) = runs
    assert (steps, made) == ([20], [16])
    assert [s for index, s in enumerate(spoiled) if index not in {1, 4, 5, 9}] == whole[:16]
    assert asked <= {2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12} - {8, 11}


def test_the_gradients_of_a_skipped_step_are_let_go(make_trainer, loader):
    held, alive = [], []

    def look(trainer, module, optimizer):
        held.append(weakref.ref(module.net[0].weight.grad))

    pruning = PruningCallback(sparsity=0.75, schedule=OneShotSchedule(end=0, unit="step"))
    look = LambdaCallback(
        on_before_optimizer_step=look,
        on_before_backward=lambda *_: alive.append([each() for each in held if each()]),
    )
    trainer = make_trainer(infinite_at({3, 4}), pruning, look, plugins=make_plugin())
    trainer.fit(Scaled(foreach=False), loader)
    assert pruning.pruner.steps == [18]
    assert alive == [[]] * 20
