import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    LambdaCallback,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

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

PRUNABLE = 16 * 32 + 32 * 4


def zeros(model: nn.Module) -> int:
    return sum(int((m.weight == 0).sum()) for m in model.modules() if isinstance(m, nn.Linear))


class Record(Callback):
    """Keeps the sparsity after each batch and checks that what is pruned is zero."""

    def __init__(self, pruning):
        self.pruning, self.sparsities = pruning, []

    def on_train_batch_end(self, trainer, pl_module, *_):
        parameters = dict(pl_module.named_parameters())
        for name, mask in self.pruning.masks.items():
            assert not parameters[name].detach()[~mask].any()
        self.sparsities.append(self.pruning.sparsity)


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


def test_sparsity_zero_is_bit_for_bit_the_run_without_it(make_model, make_trainer, loader):
    dense, pruned = make_model(), make_model()
    make_trainer().fit(dense, loader)
    make_trainer(PruningCallback(sparsity=0.0)).fit(pruned, loader)
    for one, other in zip(dense.parameters(), pruned.parameters(), strict=True):
        assert torch.equal(one, other)


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
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert int(run.stdout) == round(PRUNABLE * 0.75)


def test_accumulation_does_not_change_the_curve_by_step(make_model, make_trainer, loader):
    schedule = PolynomialSchedule(begin=0, end=5, unit="step")
    curves = []
    for accumulate in (1, 2):
        pruning = PruningCallback(sparsity=0.75, schedule=schedule)
        curve = []
        take = LambdaCallback(
            on_before_zero_grad=lambda *_, c=curve, p=pruning: c.append(p.sparsity)
        )
        trainer = make_trainer(
            pruning, take, max_steps=6, max_epochs=-1, accumulate_grad_batches=accumulate
        )
        trainer.fit(make_model(), loader)
        curves.append(curve[:6])
    assert curves[0] == curves[1]


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


def test_fast_dev_run_squeezes_the_ramp(make_model, make_trainer, loader):
    for schedule in (
        PolynomialSchedule(begin=1000, end=2000, unit="step"),
        PolynomialSchedule(begin=10, end=20, unit="epoch"),
        PolynomialSchedule(begin=0.1, end=0.9),
    ):
        pruning = PruningCallback(sparsity=0.75, schedule=schedule)
        make_trainer(pruning, fast_dev_run=3).fit(make_model(), loader)
        assert pruning.sparsity == 0.75


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.randn(16), torch.tensor(1)


def test_data_without_length_needs_steps_and_says_so(make_model, make_trainer):
    loader = DataLoader(Endless(), batch_size=4)
    with pytest.raises(ValueError, match=r"known end of training.*unit='step'"):
        make_trainer(PruningCallback(), limit_train_batches=1.0).fit(make_model(), loader)
    pruning = PruningCallback(sparsity=0.75)
    make_trainer(pruning, max_steps=12, max_epochs=-1).fit(make_model(), loader)
    assert pruning.sparsity == 0.75


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


def test_unlimited_training_refuses_fractions(make_model, make_trainer, loader):
    with pytest.raises(ValueError, match="known end of training"):
        make_trainer(PruningCallback(), max_epochs=-1).fit(make_model(), loader)


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


def test_stopping_early_warns_with_the_numbers(make_model, make_trainer, loader):
    stop = LambdaCallback(
        on_train_epoch_end=lambda trainer, _: setattr(trainer, "should_stop", True)
    )
    with pytest.warns(UserWarning, match=r"end=0.75 \(fraction\): reached sparsity 0\.\d+ of 0.9"):
        make_trainer(PruningCallback(), stop).fit(make_model(), loader)


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
    assert not trainer.optimizers[0]._optimizer_step_post_hooks


def test_the_callback_starts_afresh_on_another_model(make_model, make_trainer, loader):
    pruning = PruningCallback(sparsity=0.75)
    curves = []
    for seed in (0, 1):
        record = Record(pruning)
        make_trainer(pruning, record).fit(make_model(seed=seed), loader)
        curves.append(record.sparsities)
    assert curves[0] == curves[1]
    assert curves[0][0] == 0


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


@pytest.mark.parametrize("limits", [{"max_epochs": 2}, {"max_epochs": -1, "max_steps": 24}])
def test_two_optimizers_prune_to_a_target_each(limits, make_trainer, loader):
    model = Gan()
    pruning = PruningCallback(
        sparsity={"generator": 0.5, "discriminator": 0.75},
        schedule=PolynomialSchedule(begin=0, end=1),
    )
    make_trainer(pruning, **limits).fit(model, loader)
    assert int((model.generator.weight == 0).sum()) == 128
    assert int((model.discriminator.weight == 0).sum()) == 192


@pytest.mark.parametrize("pruning_first", [True, False])
@pytest.mark.parametrize(
    "make_averaging",
    [
        lambda: EMAWeightAveraging(decay=0.9),
        WeightAveraging,
        lambda: StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1),
    ],
    ids=["ema", "average", "swa"],
)
def test_the_averaged_model_has_exactly_the_live_masks(
    make_averaging, pruning_first, make_model, make_trainer, loader
):
    model, pruning = make_model(), PruningCallback(sparsity=0.75)
    callbacks = [pruning, make_averaging()]
    make_trainer(*(callbacks if pruning_first else callbacks[::-1]), max_epochs=4).fit(
        model, loader, loader
    )
    parameters = dict(model.named_parameters())
    for name, mask in pruning.masks.items():
        assert torch.equal(parameters[name] != 0, mask)
    assert zeros(model) == round(PRUNABLE * 0.75)


def test_swa_extra_epoch_does_not_count(make_model, make_trainer, loader):
    pruning = PruningCallback(sparsity=0.75, schedule=OneShotSchedule(end=0.5))
    record = Record(pruning)
    model = make_model()
    model.net.insert(1, nn.BatchNorm1d(32))  # for whose statistics SWA adds an epoch
    swa = StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=4)
    make_trainer(pruning, record, swa, max_epochs=4).fit(model, loader)
    assert record.sparsities[:40] == [0] * 20 + [0.75] * 20


def test_a_step_that_the_scaler_skips_stays_due(make_model, make_trainer, loader):
    from lightning.pytorch.plugins import MixedPrecision

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=1000)
    plugin = MixedPrecision("16-mixed", device="cpu", scaler=scaler)
    pruning = PruningCallback(sparsity=0.75, schedule=OneShotSchedule(end=0, unit="step"))
    record = Record(pruning)
    trainer = make_trainer(pruning, record, plugins=plugin, max_epochs=16)
    trainer.fit(make_model(), loader)
    assert record.sparsities[0] == 0.0
    assert record.sparsities[-1] == 0.75
    assert pruning.pruner.state_dict()["steps"][0] < trainer.global_step


def test_frozen_layers_stay_dense(make_model, make_trainer, loader):
    model = make_model()
    model.net[0].requires_grad_(False)
    pruning = PruningCallback(sparsity=0.75)
    make_trainer(pruning).fit(model, loader)
    assert list(pruning.masks) == ["net.2.weight"]
    assert pruning.pruner.dense["net.0.weight"] == "frozen"


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
