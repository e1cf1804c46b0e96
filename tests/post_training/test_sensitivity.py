import csv
import importlib.util
import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader

from lightning_prune import (
    NMPattern,
    Pruner,
    PruningCallback,
    Sensitivity,
    measure_sensitivity,
)
from lightning_prune.post_training.sensitivity_report import check_plot
from tests.hooks import registered
from tests.post_training.models import (
    Gradient,
    Model,
    WeightTimesGradient,
    state_of,
    trainer_with,
)


class Sums(LightningModule):
    """Its metric is the sum of its weights: 10, 9, ..., 1 in `a`, 20, 18, ..., 2 in `b`."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 2), nn.Linear(5, 2)
        self.validations, self.failing_at = 0, None
        for factor, layer in ((1, self.a), (2, self.b)):
            layer.weight.data = factor * torch.arange(10.0, 0, -1).view(2, 5)

    def training_step(self, batch, batch_idx):
        return self.b(self.a(batch).repeat(1, 3)[:, :5]).square().sum()

    def validation_step(self, batch, batch_idx):
        self.validations += 1
        if self.validations == self.failing_at:
            raise RuntimeError("out of memory")
        self.log("sum", self.a.weight.sum() + self.b.weight.sum())
        self.log("noise", torch.rand(()))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return DataLoader(torch.randn(4, 5), batch_size=2)

    def val_dataloader(self):
        return DataLoader(torch.randn(1, 5))


def measured(model, callback=None, **arguments):
    trainer = trainer_with(callback or PruningCallback(sparsity=0.9))
    return measure_sensitivity(trainer, model, **({"mode": "max"} | arguments))


def test_each_tensor_is_pruned_alone():
    sensitivity = measured(Sums(), monitor="sum", sparsities=(0.2, 0.5))
    assert sensitivity.dense == 165
    # The smallest of ten: 1 + 2, and 1 + ... + 5; twice that in b.
    assert sensitivity.metrics == {
        "a.weight": {0.2: 162, 0.5: 150},
        "b.weight": {0.2: 159, 0.5: 135},
    }
    assert sensitivity.loss("b.weight", 0.5) == 30


def test_globs_of_the_recipe_choose_what_is_measured():
    callback = PruningCallback(sparsity={"*": 0.9, "a": None})
    sensitivity = measured(Sums(), callback, monitor="sum", sparsities=(0.5,))
    assert list(sensitivity.metrics) == ["b.weight"]


@dataclass(frozen=True, kw_only=True)
class Forgetful(WeightTimesGradient):
    resets_at_update: ClassVar[bool] = True


@pytest.mark.parametrize("criterion", [None, WeightTimesGradient(), Forgetful(), Gradient()])
@pytest.mark.parametrize("train_mode", [False, True])
def test_the_model_is_unchanged(criterion, train_mode):
    model = Model()
    model.net[1].eval()
    model.net[0].weight.data[0] = -0.0
    before, hooks = state_of(model), registered(model)
    modes = [module.training for module in model.modules()]
    bits = model.net[0].weight.signbit()
    callback = PruningCallback(criterion=criterion)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    sensitivity = measured(
        model,
        callback,
        monitor="val_loss",
        mode="min",
        batches=2,
        train_mode=train_mode,
        statistics=0,
    )
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model.net[0].weight.signbit(), bits)
    assert [module.training for module in model.modules()] == modes
    assert registered(model) == hooks
    assert all(parameter.grad is None for parameter in model.parameters())
    assert len(set(sensitivity.metrics["net.4.weight"].values())) > 1
    assert len(model.modes) == (2 if criterion else 0)


def test_an_error_in_a_validation_gives_the_weights_back():
    model = Sums()
    model.failing_at = 4
    trainer = trainer_with(PruningCallback(), enable_progress_bar=True)
    callbacks = list(trainer.callbacks)
    before = state_of(model)
    with pytest.raises(RuntimeError, match="out of memory"):
        measure_sensitivity(trainer, model, monitor="sum", mode="max")
    assert model.validations == 4
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert trainer.callbacks == callbacks


def test_every_validation_sees_the_same_random_numbers():
    sensitivity = measured(Sums(), monitor="noise", sparsities=(0.2, 0.5))
    values = {v for by_sparsity in sensitivity.metrics.values() for v in by_sparsity.values()}
    assert values == {sensitivity.dense}


def test_the_pattern_is_that_of_the_recipe():
    model = Sums()
    model.a = nn.Linear(4, 1)
    model.a.weight.data = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    callback = PruningCallback(sparsity={"a": 0.5}, pattern=NMPattern(n=2, m=4))
    sensitivity = measured(model, callback, monitor="sum", sparsities=(0.5, 0.75))
    assert sensitivity.metrics["a.weight"] == {0.5: 117, 0.75: 114}
    with pytest.raises(ValueError, match=r"need sparsity 0 or at least 1 - n/m = 0\.5 for 2:4"):
        measured(model, callback, monitor="sum", sparsities=(0.4, 0.5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"monitor": "sums"}, "got monitor='sums'; validation logs 'sum', 'noise'"),
        ({"mode": "up"}, "need mode as 'max' or 'min', got mode='up'"),
        ({"sparsities": ()}, r"need at least one sparsity in \(0, 1\], got sparsities=\[\]"),
        ({"sparsities": (0.5, 1.5)}, r"need at least one sparsity in \(0, 1\]"),
        ({"sparsities": (0.0, 0.5)}, r"need at least one sparsity in \(0, 1\]"),
        ({"sparsities": (0.9, 0.5)}, r"need rising sparsities, got sparsities=\[0.9, 0.5\]"),
        ({"batches": 0}, "need batches >= 1, got batches=0"),
        ({"statistics": -1}, "need statistics >= 0, got statistics=-1"),
        ({"ckpt_path": "none.ckpt"}, "need an existing checkpoint, got ckpt_path='none.ckpt'"),
    ],
)
def test_a_bad_argument_is_refused(arguments, message):
    model = Sums()
    with pytest.raises(ValueError, match=message):
        measured(model, **({"monitor": "sum"} | arguments))
    assert model.validations == ("monitor" in arguments)


@pytest.mark.parametrize(
    ("mode", "tolerance", "a", "b"),
    [
        ("max", 0, None, 0.9),
        ("max", 0.02, 0.7, 0.9),
        ("max", 0.1, 0.9, 0.9),
        ("min", 0, 0.9, 0.7),
        ("min", 0.2, 0.9, 0.9),
    ],
)
def test_targets_are_the_largest_within_the_tolerance(mode, tolerance, a, b):
    sensitivity = Sensitivity(
        monitor="metric",
        mode=mode,
        dense=0.8,
        metrics={"a": {0.5: 0.6, 0.7: 0.79, 0.9: 0.7}, "b": {0.5: 0.7, 0.7: 0.6, 0.9: 1.0}},
    )
    assert sensitivity.targets(tolerance) == {"a": a, "b": b}
    with pytest.raises(ValueError, match="need a finite tolerance >= 0, got tolerance=-1"):
        sensitivity.targets(-1)


def test_a_nan_is_within_no_tolerance():
    sensitivity = Sensitivity(
        monitor="metric", mode="min", dense=0.8, metrics={"a": {0.5: 0.8, 0.9: float("nan")}}
    )
    assert sensitivity.targets(1) == {"a": 0.5}


def test_what_is_written_can_be_read(tmp_path):
    model = Sums()
    sensitivity = measured(model, monitor="sum", sparsities=(0.2, 0.5))
    paths = sensitivity.write(tmp_path / "new", tolerance=5)
    assert [path.name for path in paths] == [f"sensitivity.{k}" for k in ("csv", "yaml", "png")]
    rows = list(csv.DictReader(paths[0].read_text().splitlines()))
    assert [float(row["sum"]) for row in rows] == [165, 162, 150, 165, 159, 135]
    assert [row["sparsity"] for row in rows[:3]] == ["0", "0.2", "0.5"]
    assert [float(row["loss"]) for row in rows[3:]] == [0, 6, 30]
    targets = yaml.safe_load(paths[1].read_text())["sparsity"]
    assert targets == {"a.weight": 0.2, "b.weight": None}
    pruner = Pruner(sparsity=targets)
    pruner.attach(model, model.configure_optimizers(), steps=10)
    assert pruner.plan == pytest.approx({"a.weight": 0.2})
    assert paths[2].read_bytes().startswith(b"\x89PNG")
    assert len(sensitivity.write(tmp_path, tolerance=5, plot=False)) == 2
    assert not (tmp_path / "sensitivity.png").exists()


def test_globs_name_a_tensor_with_brackets_exactly():
    sensitivity = Sensitivity(
        monitor="m", mode="max", dense=1.0, metrics={"w[0].weight": {0.5: 1.0}}
    )
    assert sensitivity.targets(0) == {"w[[]0].weight": 0.5}


def test_a_plot_without_matplotlib_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"need matplotlib, got plot=True .*lightning-prune\[plots\]"
    ):
        check_plot()


class NormedSums(Sums):
    """The same, with a row of a weight_norm for each output of `a`."""

    def __init__(self):
        super().__init__()
        torch.nn.utils.parametrizations.weight_norm(self.a)


def test_a_sparsity_that_the_rows_of_a_tensor_forbid_has_no_metric():
    sensitivity = measured(NormedSums(), monitor="sum", sparsities=(0.8, 0.9))
    name = "a.parametrizations.weight.original1"
    assert sensitivity.metrics[name][0.8] < sensitivity.dense
    assert math.isnan(sensitivity.metrics[name][0.9])
    assert sensitivity.targets(tolerance=1000)[name] == 0.8
