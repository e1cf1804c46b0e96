"""Where the schedule is in the training that the Trainer plans."""

import itertools

import pytest
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    GradientAccumulationScheduler,
    LambdaCallback,
)
from torch.utils.data import DataLoader, IterableDataset

from lightning_prune import CosineSchedule, OneShotSchedule, PolynomialSchedule, PruningCallback
from tests.callbacks.conftest import Record

SECTION = "Loops"


class RecordSteps(Callback):
    """Keeps the sparsity after each optimizer step."""

    def __init__(self, pruning):
        self.pruning, self.sparsities, self.done = pruning, [], 0

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step > self.done:
            self.done = trainer.global_step
            self.sparsities.append(self.pruning.sparsity)


@pytest.mark.works_with(SECTION, "gradient accumulation by 1 and by 4: the same curve by step")
@pytest.mark.parametrize(
    "schedule",
    [
        CosineSchedule(begin=0.1, end=0.75),
        CosineSchedule(begin=0, end=2, unit="epoch"),
        CosineSchedule(begin=2, end=19, unit="step"),
    ],
    ids=lambda schedule: schedule.unit,
)
def test_accumulation_does_not_change_the_curve_by_step(schedule, make_model, make_trainer, loader):
    curves = []
    for accumulate in (1, 4):
        pruning = PruningCallback(sparsity=0.75, schedule=schedule)
        record = RecordSteps(pruning)
        batches = DataLoader(loader.dataset, batch_size=8 // accumulate)
        trainer = make_trainer(pruning, record, accumulate_grad_batches=accumulate)
        trainer.fit(make_model(), batches)
        curves.append(record.sparsities)
    assert curves[0] == curves[1]
    assert len(curves[0]) == 20
    assert curves[0][-1] == 0.75


@pytest.mark.works_with(SECTION, "gradient accumulation by 1 and by 4: the same curve by step")
def test_accumulation_that_does_not_divide_the_epoch_lands_too(make_model, make_trainer, loader):
    for accumulate in (
        {"accumulate_grad_batches": 4},
        {"callbacks": [GradientAccumulationScheduler({0: 1, 1: 3})]},
    ):
        pruning = PruningCallback(sparsity=0.75, schedule=PolynomialSchedule(begin=0, end=1))
        callbacks = accumulate.pop("callbacks", [])
        make_trainer(pruning, Record(pruning), *callbacks, **accumulate).fit(make_model(), loader)
        assert pruning.sparsity == 0.75


@pytest.mark.works_with(SECTION, "`max_epochs` and `max_steps`: whichever ends first")
def test_the_fraction_follows_whichever_ends_first(make_model, make_trainer, loader):
    for limits in ({"max_epochs": 2, "max_steps": 7}, {"max_epochs": 1, "max_steps": 70}):
        pruning = PruningCallback(sparsity=0.75, schedule=PolynomialSchedule(begin=0, end=1))
        make_trainer(pruning, **limits).fit(make_model(), loader)
        assert pruning.sparsity == 0.75
    for limits in ({"max_epochs": 100, "max_steps": 10}, {"max_epochs": 1, "max_steps": 100}):
        pruning = PruningCallback(sparsity=0.75, schedule=OneShotSchedule(end=0.5))
        record = Record(pruning)
        make_trainer(pruning, record, **limits).fit(make_model(), loader)
        assert record.sparsities == [0] * 5 + [0.75] * 5


@pytest.mark.works_with(SECTION, "`limit_train_batches`, `overfit_batches`")
@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        ({"limit_train_batches": 3}, 6),
        ({"limit_train_batches": 0.5}, 10),
        ({"overfit_batches": 2}, 4),
    ],
)
def test_fewer_batches_squeeze_the_curve(limits, steps, make_model, make_trainer, loader):
    pruning = PruningCallback(sparsity=0.75, schedule=OneShotSchedule(end=0.5))
    record = Record(pruning)
    make_trainer(pruning, record, **limits).fit(make_model(), loader)
    assert record.sparsities == [0] * (steps // 2) + [0.75] * (steps // 2)


@pytest.mark.works_with(SECTION, "`fast_dev_run` squeezes any ramp into its batches")
def test_fast_dev_run_squeezes_the_ramp(make_model, make_trainer, loader):
    for schedule in (
        PolynomialSchedule(begin=1000, end=2000, unit="step"),
        PolynomialSchedule(begin=10, end=20, unit="epoch"),
        PolynomialSchedule(begin=0.1, end=0.9),
    ):
        pruning = PruningCallback(sparsity=0.75, schedule=schedule)
        make_trainer(pruning, fast_dev_run=3).fit(make_model(), loader)
        assert pruning.sparsity == 0.75


class Stream(IterableDataset):
    """Data without a length, endless or not."""

    def __init__(self, samples=None):
        self.samples = samples

    def __iter__(self):
        for _ in itertools.count() if self.samples is None else range(self.samples):
            yield torch.randn(16), torch.tensor(1)


@pytest.mark.works_with(SECTION, "data without a length: `max_steps`, or counts of steps or epochs")
def test_data_without_length_is_counted_in_steps(make_model, make_trainer):
    pruning = PruningCallback(sparsity=0.75)
    loader = DataLoader(Stream(), batch_size=4)
    make_trainer(pruning, max_steps=12, max_epochs=-1).fit(make_model(), loader)
    assert pruning.sparsity == 0.75


@pytest.mark.works_with(SECTION, "data without a length: `max_steps`, or counts of steps or epochs")
@pytest.mark.parametrize("end", [1, 1.5, 2])
def test_the_last_batch_of_data_without_length_serves_the_end(end, make_model, make_trainer):
    schedule = PolynomialSchedule(begin=0, end=end, unit="epoch")
    pruning = PruningCallback(sparsity=0.75, schedule=schedule)
    record = Record(pruning)
    make_trainer(pruning, record).fit(make_model(), DataLoader(Stream(20), batch_size=4))
    assert len(record.sparsities) == 10
    assert record.sparsities[-1] == 0.75
    assert (record.sparsities[-2] == 0.75) == (end == 1)


@pytest.mark.works_with(
    SECTION,
    "a fraction of a training without a known end: the error names the other units",
    refused=True,
)
def test_fractions_of_an_unknown_plan_are_refused(make_model, make_trainer, loader):
    stream = DataLoader(Stream(), batch_size=4)
    for data, limits in (
        (stream, {"limit_train_batches": 1.0}),
        (loader, {"max_epochs": -1}),
        (loader, {"max_epochs": -1, "max_time": "00:00:01:00"}),
    ):
        with pytest.raises(ValueError, match=r"known end of training.*unit='step'"):
            make_trainer(PruningCallback(), **limits).fit(make_model(), data)


@pytest.mark.works_with(SECTION, "`max_epochs=-1` and `max_time`, counted in steps")
def test_training_without_an_end_is_counted_in_steps(make_model, make_trainer, loader):
    schedule = OneShotSchedule(end=30, unit="step")
    pruning = PruningCallback(sparsity=0.75, schedule=schedule)
    stop = LambdaCallback(
        on_train_batch_end=lambda trainer, *_: setattr(
            trainer, "should_stop", trainer.global_step == 35
        )
    )
    record = Record(pruning)
    trainer = make_trainer(pruning, record, stop, max_epochs=-1, max_time="00:00:10:00")
    trainer.fit(make_model(), loader)
    assert record.sparsities == [0] * 30 + [0.75] * 5


@pytest.mark.works_with(SECTION, "`max_epochs=-1` and `max_time`, counted in steps")
def test_time_that_is_up_before_the_end_warns_with_the_numbers(make_model, make_trainer, loader):
    pruning = PruningCallback(sparsity=0.75)
    trainer = make_trainer(pruning, max_epochs=100_000, max_time={"seconds": 0.2})
    with pytest.warns(UserWarning, match=r"end=0.5 \(fraction\): reached sparsity 0\.\d+ of 0.75"):
        trainer.fit(make_model(), loader)


@pytest.mark.works_with(
    SECTION, "an end beyond the planned steps or epochs: the error gives both numbers", refused=True
)
@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (PolynomialSchedule(begin=0, end=21, unit="step"), "within the 20 planned steps"),
        (PolynomialSchedule(begin=0, end=2.5, unit="epoch"), "within the 2 planned epochs"),
    ],
)
def test_an_end_beyond_the_plan_is_an_error_before_training(
    schedule, message, make_model, make_trainer, loader
):
    model = make_model()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=message):
        make_trainer(PruningCallback(schedule=schedule)).fit(model, loader)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.works_with(SECTION, "early stopping before the end: a warning gives the numbers")
def test_stopping_early_warns_with_the_numbers(make_model, make_trainer, loader):
    stop = EarlyStopping("val_acc", mode="max", patience=1)
    with pytest.warns(UserWarning, match=r"end=0.5 \(fraction\): reached sparsity 0\.\d+ of 0.9"):
        make_trainer(PruningCallback(), stop, max_epochs=8).fit(make_model(), loader, loader)


@pytest.mark.works_with(SECTION, "early stopping before the end: a warning gives the numbers")
def test_a_run_that_pruned_nothing_says_so(make_model, make_trainer, loader):
    model = make_model()
    for layer in (model.net[0], model.net[2]):
        layer.weight.requires_grad_(False)
    with (
        pytest.warns(UserWarning, match=r"nothing is pruned until.*'net.0.weight' \(frozen\)"),
        pytest.warns(UserWarning, match=r"nothing was pruned.*'net.0.weight' \(frozen\)"),
    ):
        make_trainer(PruningCallback()).fit(model, loader)
