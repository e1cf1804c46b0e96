"""Another fit, on the same Trainer or another."""

import contextlib

import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from torch import nn
from torch.utils.data import DataLoader, Subset

from lightning_prune import PolynomialSchedule, PruningCallback, SparsityMonitor
from tests.callbacks.conftest import PRUNABLE, Record, zeros

SECTION = "Loops"
REGROWTH = "weights are 0 and no mask says why"


@pytest.mark.works_with(
    SECTION, "a checkpoint of another step, restored while training", refused=True
)
def test_an_older_state_is_refused_while_training(make_model, make_trainer, loader):
    pruning = PruningCallback()
    states = []

    def restore(trainer, module, *_):
        states.append(pruning.state_dict())
        if trainer.global_step == 3:
            pruning.load_state_dict(states[0])

    with pytest.raises(RuntimeError, match=r"of the present step.*\[1\] at \[3\].*ckpt_path"):
        make_trainer(pruning, LambdaCallback(on_train_batch_end=restore)).fit(make_model(), loader)


@pytest.mark.works_with(
    SECTION, "`fit` again: the same Trainer, another Trainer, another model, k-fold"
)
@pytest.mark.parametrize("unit", ["step", "epoch", "fraction"])
@pytest.mark.parametrize("keep_zeros", [False, True])
def test_the_same_trainer_goes_on_to_more_epochs(
    unit, keep_zeros, make_model, make_trainer, loader
):
    end = {"step": 20, "epoch": 2, "fraction": 0.75}[unit]
    schedule = PolynomialSchedule(begin=0, end=end, unit=unit)
    pruning = PruningCallback(sparsity=0.75, keep_zeros=keep_zeros, schedule=schedule)
    record, model = Record(pruning), make_model()
    trainer = make_trainer(pruning, record)
    trainer.fit(model, loader)
    assert record.sparsities[-1] == 0.75
    trainer.fit_loop.max_epochs = 4
    with contextlib.nullcontext() if keep_zeros else pytest.warns(UserWarning, match=REGROWTH):
        trainer.fit(model, loader)
    assert len(record.sparsities) == 40
    assert record.sparsities[-1] == 0.75
    assert zeros(model) == round(PRUNABLE * 0.75)
    if keep_zeros:
        assert set(record.sparsities[20:]) == {0.75}


@pytest.mark.works_with(
    SECTION, "`fit` again: the same Trainer, another Trainer, another model, k-fold"
)
def test_steps_that_are_over_are_not_planned_again(make_model, make_trainer, loader):
    schedule = PolynomialSchedule(begin=0, end=21, unit="step")
    pruning, model = PruningCallback(schedule=schedule), make_model()
    trainer = make_trainer(pruning, max_epochs=3)
    trainer.fit(model, loader)
    trainer.fit_loop.max_epochs = 5
    with pytest.raises(ValueError, match="within the 20 planned steps, got end=21"):
        trainer.fit(model, loader)


@pytest.mark.works_with(
    SECTION, "`fit` again: the same Trainer, another Trainer, another model, k-fold"
)
def test_a_fit_with_nothing_left_to_train_keeps_the_masks(
    make_model, make_trainer, loader, tmp_path
):
    pruning, model = PruningCallback(sparsity=0.75), make_model()
    trainer = make_trainer(pruning)
    trainer.fit(model, loader)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    before = pruning.state_dict()["steps"]
    trainer.fit(model, loader)
    assert pruning.state_dict()["steps"] == before == [20]
    again = PruningCallback(sparsity=0.75)
    make_trainer(again).fit(model, loader, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert again.state_dict()["steps"] == [20]


@pytest.mark.works_with(
    SECTION, "`fit` again: the same Trainer, another Trainer, another model, k-fold"
)
def test_a_start_that_failed_leaves_no_masks_for_the_next(
    make_model, make_trainer, loader, tmp_path
):
    pruning = PruningCallback(sparsity=0.75)
    trainer = make_trainer(pruning)
    trainer.fit(make_model(), loader)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    wider = make_model()
    wider.net[2] = nn.Linear(32, 5)
    strict = make_trainer(pruning, max_epochs=4)
    wider.strict_loading = False
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    state["state_dict"] = {}
    torch.save(state, tmp_path / "masks.ckpt")
    with pytest.raises(ValueError, match="masks that fit the model"):
        strict.fit(wider, loader, ckpt_path=tmp_path / "masks.ckpt", weights_only=True)
    record = Record(pruning)
    make_trainer(pruning, record).fit(make_model(), loader)
    assert record.sparsities[0] == 0


@pytest.mark.works_with(
    SECTION, "`fit` again: the same Trainer, another Trainer, another model, k-fold"
)
def test_every_fold_is_pruned_as_if_it_were_the_first(make_model, make_trainer, loader):
    folds = [Subset(loader.dataset, range(start, 80, 2)) for start in range(2)]
    reused = PruningCallback(sparsity=0.75)
    for seed, fold in enumerate(folds):
        runs = []
        for pruning in (reused, PruningCallback(sparsity=0.75)):
            model, record = make_model(seed=seed), Record(pruning)
            make_trainer(pruning, record, SparsityMonitor()).fit(
                model, DataLoader(fold, batch_size=4)
            )
            runs.append((record.sparsities, model.state_dict()))
        assert runs[0][0] == runs[1][0]
        assert runs[0][0][0] == 0
        assert all(torch.equal(runs[0][1][name], runs[1][1][name]) for name in runs[0][1])
