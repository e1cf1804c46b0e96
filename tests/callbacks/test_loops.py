import itertools

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    BatchSizeFinder,
    Callback,
    EarlyStopping,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateFinder,
)
from lightning.pytorch.tuner import Tuner
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset

from lightning_prune import (
    CosineSchedule,
    OneShotSchedule,
    PolynomialSchedule,
    PruningCallback,
    SparsityMonitor,
    UniformAllocation,
)
from tests.callbacks.conftest import PRUNABLE, Classifier, Record, zeros
from tests.hooks import hooks

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


@pytest.mark.works_with(SECTION, "data without a length, with `max_steps`, or counted otherwise")
def test_data_without_length_is_counted_in_steps(make_model, make_trainer):
    pruning = PruningCallback(sparsity=0.75)
    loader = DataLoader(Stream(), batch_size=4)
    make_trainer(pruning, max_steps=12, max_epochs=-1).fit(make_model(), loader)
    assert pruning.sparsity == 0.75


@pytest.mark.works_with(SECTION, "data without a length, with `max_steps`, or counted otherwise")
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
    SECTION, "a fraction of a training without a known end: what to write instead", refused=True
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
    SECTION, "an end beyond the planned steps or epochs: both numbers", refused=True
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


@pytest.mark.works_with(SECTION, "early stopping before the end: a warning with the numbers")
def test_stopping_early_warns_with_the_numbers(make_model, make_trainer, loader):
    stop = EarlyStopping("val_acc", mode="max", patience=1)
    with pytest.warns(UserWarning, match=r"end=0.5 \(fraction\): reached sparsity 0\.\d+ of 0.9"):
        make_trainer(PruningCallback(), stop, max_epochs=8).fit(make_model(), loader, loader)


@pytest.mark.works_with(SECTION, "early stopping before the end: a warning with the numbers")
def test_a_run_that_pruned_nothing_says_so(make_model, make_trainer, loader):
    model = make_model()
    for layer in (model.net[0], model.net[2]):
        layer.weight.requires_grad_(False)
    with pytest.warns(UserWarning, match=r"nothing was pruned.*'net.0.weight' \(frozen\)"):
        make_trainer(PruningCallback()).fit(model, loader)


class Gan(LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.discriminator = nn.Linear(16, 16), nn.Linear(16, 16)

    def training_step(self, batch, batch_idx):
        for optimizer, net in zip(
            self.optimizers(), (self.generator, self.discriminator), strict=True
        ):
            optimizer.zero_grad()
            self.manual_backward(net(batch[0]).square().mean())
            optimizer.step()

    def configure_optimizers(self):
        return [
            torch.optim.Adam(self.generator.parameters()),
            torch.optim.SGD(self.discriminator.parameters(), lr=0.1, momentum=0.9),
        ]


@pytest.mark.works_with(SECTION, "manual optimization of two networks, a target for each")
@pytest.mark.parametrize("limits", [{"max_epochs": 2}, {"max_epochs": -1, "max_steps": 24}])
def test_two_optimizers_prune_to_a_target_each(limits, make_trainer, loader):
    model = Gan()
    pruning = PruningCallback(
        sparsity={"generator": 0.5, "discriminator": 0.75},
        schedule=PolynomialSchedule(begin=0, end=1),
    )
    make_trainer(pruning, Record(pruning), **limits).fit(model, loader)
    assert int((model.generator.weight == 0).sum()) == 128
    assert int((model.discriminator.weight == 0).sum()) == 192


class Manual(Classifier):
    """Steps at every second batch, clipping before."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        self.manual_backward(super().training_step(batch, batch_idx) / 2)
        if batch_idx % 2:
            self.clip_gradients(optimizer, 0.1, "norm")
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.works_with(SECTION, "manual optimization that accumulates and clips")
def test_manual_optimization_counts_its_own_steps(make_trainer, loader):
    schedule = OneShotSchedule(end=4, unit="step")
    pruning, model = PruningCallback(sparsity=0.75, schedule=schedule), Manual()
    record = Record(pruning)
    make_trainer(pruning, record).fit(model, loader)
    assert pruning.pruner.state_dict()["steps"] == [10]
    assert record.sparsities == [0] * 9 + [0.75] * 11
    assert zeros(model) == round(PRUNABLE * 0.75)


@pytest.mark.works_with(
    SECTION, "manual optimization that steps the raw optimizer: what to step instead", refused=True
)
def test_a_raw_step_says_what_to_step(make_trainer, loader):
    class Raw(Manual):
        def optimizers(self):
            return super().optimizers(use_pl_optimizer=False)

    with pytest.raises(RuntimeError, match=r"step what self\.optimizers\(\) returns"):
        make_trainer(PruningCallback()).fit(Raw(), loader)


@pytest.mark.works_with(SECTION, "several parameter groups")
def test_parameter_groups_share_one_budget(make_trainer, loader):
    class Grouped(Classifier):
        def configure_optimizers(self):
            groups = [
                {"params": self.net[0].parameters(), "lr": 1e-3},
                {"params": self.net[2].parameters(), "weight_decay": 0.1},
            ]
            return torch.optim.AdamW(groups, lr=1e-2)

    model, pruning = Grouped(), PruningCallback(sparsity=0.75)
    make_trainer(pruning, Record(pruning)).fit(model, loader)
    assert zeros(model) == round(PRUNABLE * 0.75)


def at_epoch(epoch, do):
    def start(trainer, module):
        if trainer.current_epoch == epoch:
            do(trainer, module)

    return LambdaCallback(on_train_epoch_start=start)


@pytest.mark.works_with(SECTION, "layers added after training began, and replaced ones")
def test_a_layer_that_is_added_while_training_is_due_at_once(make_model, make_trainer, loader):
    model = make_model()

    def grow(trainer, module):
        module.net.append(nn.Linear(4, 8))
        trainer.optimizers[0].add_param_group({"params": module.net[3].parameters()})

    schedule = OneShotSchedule(end=0.25)
    pruning = PruningCallback(sparsity=0.75, schedule=schedule, allocation=UniformAllocation())
    record = Record(pruning)
    make_trainer(pruning, record, at_epoch(1, grow)).fit(model, loader)
    assert int((model.net[3].weight == 0).sum()) == 24
    assert zeros(model) == round(PRUNABLE * 0.75) + 24
    assert record.sparsities == [0] * 5 + [0.75] * 15


@pytest.mark.works_with(SECTION, "layers added after training began, and replaced ones")
def test_a_layer_that_is_replaced_is_pruned_anew(make_model, make_trainer, loader):
    model = make_model()

    def replace(trainer, module):
        module.net[2] = nn.Linear(32, 4)
        trainer.optimizers[0].add_param_group({"params": module.net[2].parameters()})

    pruning = PruningCallback(
        sparsity=0.75, schedule=OneShotSchedule(end=0.25), allocation=UniformAllocation()
    )
    make_trainer(pruning, Record(pruning), at_epoch(1, replace)).fit(model, loader)
    assert torch.equal(model.net[2].weight != 0, pruning.masks["net.2.weight"])
    assert zeros(model) == round(PRUNABLE * 0.75)


@pytest.mark.works_with(SECTION, "optimizers replaced or added after training began")
@pytest.mark.parametrize("end", [0.25, 0.75])
def test_a_replaced_optimizer_goes_on_counting(end, make_model, make_trainer, loader):
    model = make_model()
    old = []

    def replace(trainer, module):
        old.extend(trainer.optimizers)
        trainer.optimizers = [torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)]

    pruning = PruningCallback(sparsity=0.75, schedule=OneShotSchedule(end=end))
    record = Record(pruning)
    trainer = make_trainer(pruning, record, at_epoch(1, replace))
    trainer.fit(model, loader)
    assert record.sparsities == [0] * int(20 * end) + [0.75] * int(20 * (1 - end))
    assert pruning.pruner.state_dict()["steps"] == [20]
    assert zeros(model) == round(PRUNABLE * 0.75)
    assert not hooks(*old, *trainer.optimizers)


@pytest.mark.works_with(SECTION, "optimizers replaced or added after training began")
def test_an_added_optimizer_prunes_what_it_owns(make_trainer, loader):
    class Growing(Gan):
        def training_step(self, batch, batch_idx):
            optimizers = self.optimizers()
            for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
                optimizer.zero_grad()
                (parameter, *_) = optimizer.param_groups[0]["params"]
                self.manual_backward(parameter.square().mean())
                optimizer.step()

        def configure_optimizers(self):
            return super().configure_optimizers()[0]

    def add(trainer, module):
        trainer.optimizers = [
            *trainer.optimizers,
            torch.optim.SGD(module.discriminator.parameters(), lr=0.1),
        ]

    model, pruning = Growing(), PruningCallback(sparsity=0.75)
    make_trainer(pruning, Record(pruning), at_epoch(1, add)).fit(model, loader)
    assert pruning.pruner.state_dict()["steps"] == [20, 10]
    assert int((model.generator.weight == 0).sum()) == 192
    assert int((model.discriminator.weight == 0).sum()) == 192


@pytest.mark.works_with(SECTION, "optimizers replaced or added after training began")
def test_a_weight_that_changes_hands_is_pruned_by_the_count_of_its_new_owner(make_trainer, loader):
    class Split(Gan):
        def training_step(self, batch, batch_idx):
            optimizers = self.optimizers()
            for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
                optimizer.zero_grad()
                self.manual_backward(self.discriminator(self.generator(batch[0])).square().mean())
                optimizer.step()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    def split(trainer, module):
        parts = (module.generator, module.discriminator)
        trainer.optimizers = [torch.optim.SGD(part.parameters(), lr=0.01) for part in parts]

    model, curves = Split(), []
    pruning = PruningCallback(sparsity=0.75, schedule=OneShotSchedule(end=15, unit="step"))
    look = LambdaCallback(
        on_train_batch_end=lambda *_: curves.append(
            [int((part.weight == 0).sum()) for part in (model.generator, model.discriminator)]
        )
    )
    make_trainer(pruning, look, at_epoch(1, split), max_epochs=3).fit(model, loader)
    assert curves == [[0, 0]] * 15 + [[192, 0]] * 10 + [[192, 192]] * 5


@pytest.mark.works_with(SECTION, "layers that are frozen, or unfrozen by `BaseFinetuning`")
def test_frozen_layers_stay_dense(make_model, make_trainer, loader):
    model = make_model()
    model.net[0].requires_grad_(False)
    pruning = PruningCallback(sparsity=0.75)
    make_trainer(pruning).fit(model, loader)
    assert list(pruning.masks) == ["net.2.weight"]
    assert pruning.pruner.dense["net.0.weight"] == "frozen"


class Thaw(BaseFinetuning):
    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.net[0])

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net[0], optimizer)


class Backbone(Classifier):
    """The first layer is the backbone; only what is not frozen goes to the optimizer at first."""

    @property
    def backbone(self):
        return self.net[0]

    def configure_optimizers(self):
        return torch.optim.AdamW(filter(lambda p: p.requires_grad, self.parameters()), lr=1e-2)


@pytest.mark.works_with(SECTION, "layers that are frozen, or unfrozen by `BaseFinetuning`")
@pytest.mark.parametrize(
    "thaw", [Thaw, lambda: BackboneFinetuning(1, initial_denom_lr=2.0)], ids=["base", "backbone"]
)
@pytest.mark.parametrize("pruning_first", [True, False])
def test_an_unfrozen_layer_is_due_at_once(thaw, pruning_first, make_trainer, loader):
    model = Backbone()
    pruning = PruningCallback(
        sparsity=0.75, schedule=OneShotSchedule(end=0.25), allocation=UniformAllocation()
    )
    record = Record(pruning)
    before = model.net[0].weight.clone()
    same = []
    look = LambdaCallback(
        on_train_epoch_end=lambda *_: same.append(torch.equal(model.net[0].weight, before))
    )
    callbacks = [pruning, thaw()] if pruning_first else [thaw(), pruning]
    make_trainer(*callbacks, record, look).fit(model, loader)
    assert same == [True, False]
    assert zeros(model) == round(PRUNABLE * 0.75)
    assert record.sparsities == [0] * 5 + [0.75] * 15


class Tuned(Classifier):
    """Has a learning rate, a batch size and its own data, for the finders."""

    def __init__(self, data, lr=1e-3, batch_size=4):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for layer in (self.net[0], self.net[2]):
                layer.reset_parameters()
        self.data, self.lr, self.batch_size = data, lr, batch_size

    def train_dataloader(self):
        return DataLoader(self.data, batch_size=self.batch_size)

    validation_step = LightningModule.validation_step  # a late finder stops at validation

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.1)


class LateFinder(LearningRateFinder):
    """Looks for the learning rate in the middle of training, as Lightning's docs show."""

    def on_fit_start(self, trainer, pl_module):
        pass

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            self.lr_find(trainer, pl_module)


def with_finder(trainer, model):
    trainer.callbacks.append(LearningRateFinder(num_training_steps=14))


def with_tuner(trainer, model):
    Tuner(trainer).lr_find(model, num_training=14)


def with_late_finder(trainer, model):
    trainer.callbacks.append(LateFinder(num_training_steps=14, early_stop_threshold=None))


def with_size_finder(trainer, model):
    trainer.callbacks.append(BatchSizeFinder(max_trials=3, steps_per_trial=2))


def with_size_tuner(trainer, model):
    Tuner(trainer).scale_batch_size(model, max_trials=3, steps_per_trial=2)


class Trace(Callback):
    """Keeps all that a finder could leave behind, after each batch."""

    def __init__(self, pruning):
        self.pruning, self.seen = pruning, []

    def on_train_batch_end(self, trainer, pl_module, *_):
        pruner = self.pruning.pruner
        state = pruner.state_dict()
        self.seen.append(
            [
                trainer.global_step,
                trainer.optimizers[0].param_groups[0]["lr"],
                self.pruning.sparsity,
                pruner.sparsity_target,
                pruner.updates,
                dict(pruner.changed),
                state["steps"],
                state["due"],
                [mask.tolist() for mask in self.pruning.masks.values()],
                [parameter.tolist() for parameter in pl_module.parameters()],
            ]
        )


@pytest.mark.works_with(
    SECTION,
    "`LearningRateFinder` and `BatchSizeFinder`, as callbacks and by `Tuner`: no trace",
)
@pytest.mark.parametrize("used_before", [False, True], ids=["new", "used before"])
@pytest.mark.parametrize(
    "find", [with_finder, with_tuner, with_late_finder, with_size_finder, with_size_tuner]
)
@pytest.mark.slow
def test_a_finder_leaves_no_trace(find, used_before, make_trainer, loader):
    runs = []
    for finder in (find, None):
        pruning = PruningCallback(sparsity=0.75, schedule=PolynomialSchedule(begin=0, end=0.75))
        if used_before:
            make_trainer(pruning).fit(Tuned(loader.dataset, lr=0.1))
        trace = Trace(pruning)
        trainer = make_trainer(pruning, trace, max_epochs=4)
        if finder:
            model = Tuned(loader.dataset)
            finder(trainer, model)
            found = model
        elif find is with_late_finder:
            model = Tuned(loader.dataset)

            def set_lr(trainer, module, lr=found.lr):
                trainer.optimizers[0].param_groups[0]["lr"] = lr

            trainer.callbacks.append(at_epoch(1, set_lr))
        else:
            model = Tuned(loader.dataset, lr=found.lr, batch_size=found.batch_size)
        trainer.fit(model)
        runs.append([*trace.seen, pruning.state_dict()["steps"]])
    assert (found.lr, found.batch_size) != (1e-3, 4)
    assert runs[0] == runs[1]
    assert zeros(model) == round(PRUNABLE * 0.75)


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
    SECTION, "`fit` again: the same Trainer, another one, another model, k-fold"
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
    trainer.fit(model, loader)
    assert len(record.sparsities) == 40
    assert record.sparsities[-1] == 0.75
    assert zeros(model) == round(PRUNABLE * 0.75)
    if keep_zeros:
        assert set(record.sparsities[20:]) == {0.75}


@pytest.mark.works_with(
    SECTION, "`fit` again: the same Trainer, another one, another model, k-fold"
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
    SECTION, "`fit` again: the same Trainer, another one, another model, k-fold"
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
    SECTION, "`fit` again: the same Trainer, another one, another model, k-fold"
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
    SECTION, "`fit` again: the same Trainer, another one, another model, k-fold"
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
