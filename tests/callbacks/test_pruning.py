import itertools
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import LambdaCallback
from torch import nn

from lightning_prune import (
    BlockPattern,
    CosineSchedule,
    ERKAllocation,
    GlobalAllocation,
    LAMPAllocation,
    MultiStepSchedule,
    NMPattern,
    OneShotSchedule,
    PolynomialSchedule,
    PruningCallback,
    RandomCriterion,
    UniformAllocation,
)
from tests.callbacks.conftest import PRUNABLE, Record, zeros
from tests.commands import run_python
from tests.hooks import hooks

PAIRS = [
    {"schedule": CosineSchedule(begin=0, end=1), "allocation": UniformAllocation()},
    {"schedule": OneShotSchedule(end=3, unit="step"), "allocation": GlobalAllocation()},
    {"schedule": MultiStepSchedule(), "allocation": LAMPAllocation()},
    {"pattern": NMPattern(n=1, m=4), "criterion": RandomCriterion()},
    {"pattern": BlockPattern(shape=(4, 4)), "allocation": ERKAllocation()},
    {"schedule": PolynomialSchedule(begin=0, end=2, unit="epoch")},
]


@pytest.mark.parametrize(
    ("recipe", "optimizer"),
    [*itertools.product(PAIRS, ["adamw"]), (PAIRS[1], "sgd"), (PAIRS[4], "adagrad")],
)
def test_every_recipe_lands_exactly_and_holds_its_zeros(
    recipe, optimizer, make_model, make_trainer, loader
):
    pruning, model = PruningCallback(sparsity=0.75, **recipe), make_model(optimizer=optimizer)
    record = Record(pruning)
    make_trainer(pruning, record).fit(model, loader)
    assert zeros(model) == round(PRUNABLE * 0.75)
    assert record.sparsities == sorted(record.sparsities)
    assert record.sparsities[-1] == 0.75


def test_it_logs_sparsity_and_target_for_everybody(make_model, make_trainer, loader):
    pruning = PruningCallback(sparsity=0.75)
    trainer = make_trainer(pruning)
    trainer.fit(make_model(), loader)
    assert trainer.callback_metrics["sparsity"] == pruning.sparsity == 0.75
    assert trainer.callback_metrics["sparsity_target"] == 0.75


@pytest.mark.parametrize("criterion", [None, RandomCriterion()])
def test_a_resumed_run_equals_the_uninterrupted_one(
    criterion, make_model, make_trainer, loader, tmp_path
):
    whole, first, second = make_model(), make_model(), make_model(seed=1)
    make_trainer(PruningCallback(criterion=criterion), max_epochs=4).fit(whole, loader)

    def save(trainer, module):
        if trainer.current_epoch == 1:
            trainer.save_checkpoint(tmp_path / "middle.ckpt")

    saving = LambdaCallback(on_train_epoch_end=save)
    make_trainer(PruningCallback(criterion=criterion), saving, max_epochs=4).fit(first, loader)
    resumed = PruningCallback(criterion=criterion)
    make_trainer(resumed, max_epochs=4).fit(
        second, loader, ckpt_path=tmp_path / "middle.ckpt", weights_only=True
    )
    assert resumed.sparsity == pytest.approx(0.9)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])


def test_a_checkpoint_loads_into_the_plain_model_without_this_package(
    make_model, make_trainer, loader, tmp_path
):
    trainer = make_trainer(PruningCallback(sparsity=0.75))
    trainer.fit(make_model(), loader)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    code = f"""
import sys, torch
from torch import nn
state = torch.load({str(tmp_path / "last.ckpt")!r}, weights_only=True)["state_dict"]
net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
net.load_state_dict({{name.removeprefix("net."): value for name, value in state.items()}})
assert "lightning_prune" not in sys.modules
print(sum(int((net[i].weight == 0).sum()) for i in (0, 2)))
"""
    assert int(run_python("-c", code, folder=tmp_path).stdout) == round(PRUNABLE * 0.75)


def test_two_pruning_callbacks_are_refused(make_model, make_trainer, loader):
    class Another(PruningCallback):
        pass

    with pytest.raises(RuntimeError, match="more than one stateful callback of type `PruningCal"):
        make_trainer(PruningCallback(), PruningCallback())  # Lightning refuses the same class
    with pytest.raises(ValueError, match="one PruningCallback in a Trainer, got 2"):
        make_trainer(PruningCallback(), Another()).fit(make_model(), loader)


def test_a_typo_in_a_glob_lists_the_names(make_model, make_trainer, loader):
    with pytest.raises(ValueError, match=r"'encoder'.*'net.0.weight', 'net.2.weight'"):
        make_trainer(PruningCallback(sparsity={"encoder": 0.5})).fit(make_model(), loader)


def test_an_exception_leaves_zeros_and_no_hooks(make_model, make_trainer, loader):
    pruning = PruningCallback(sparsity=0.75)

    def fail(trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == 15:
            raise KeyError("on purpose")

    trainer = make_trainer(pruning, LambdaCallback(on_train_batch_end=fail))
    model = make_model()
    with pytest.raises(KeyError):
        trainer.fit(model, loader)
    assert zeros(model) == round(PRUNABLE * pruning.sparsity) > 0
    assert not hooks(*trainer.optimizers)


class Configured(LightningModule):
    """Makes its layers in configure_model, one of them lazily."""

    def configure_model(self):
        self.net = nn.Sequential(nn.LazyLinear(32), nn.ReLU(), nn.Linear(32, 4))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_layers_from_configure_model_and_lazy_ones_are_pruned(make_trainer, loader):
    model, pruning = Configured(), PruningCallback(sparsity=0.75)
    make_trainer(pruning).fit(model, loader)
    assert zeros(model) == round(PRUNABLE * 0.75)


def test_validating_a_checkpoint_leaves_no_masks_for_the_next_fit(
    make_model, make_trainer, loader, tmp_path
):
    pruning = PruningCallback(sparsity=0.75)
    trainer = make_trainer(pruning)
    trainer.fit(make_model(), loader)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    trainer.validate(make_model(), loader, ckpt_path=Path(tmp_path / "last.ckpt"))
    record = Record(pruning)
    make_trainer(pruning, record).fit(make_model(), loader)
    assert record.sparsities[0] == 0
