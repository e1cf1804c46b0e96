import csv

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader

from lightning_prune import (
    ChannelPattern,
    LatencyBudget,
    MacsBudget,
    NMPattern,
    ParameterBudget,
    PruningCallback,
    TaylorCriterion,
    prune_once,
    search_sparsities,
    shrink,
)
from tests.hooks import registered
from tests.post_training.models import Model, state_of, trainer_with

GRID = (0.2, 0.5, 0.8)


class Sums(LightningModule):
    """The metric is the sum of the weights: 10, 9, ..., 1 in `a`, and ten times that in `b`.

    Where both are pruned, `clash` times the number of zeros in both is lost as well.
    """

    def __init__(self, clash=0.0):
        super().__init__()
        self.a, self.b = nn.Linear(5, 2, bias=False), nn.Linear(5, 2, bias=False)
        self.clash, self.validations, self.failing_at = clash, 0, None
        for factor, layer in ((1, self.a), (10, self.b)):
            layer.weight.data = factor * torch.arange(10.0, 0, -1).view(2, 5)
        self.example_input_array = torch.zeros(1, 5)

    def forward(self, inputs):
        return self.a(inputs) + self.b(inputs)

    def training_step(self, batch, batch_idx):
        return self(batch).square().sum()

    def validation_step(self, batch, batch_idx):
        self.validations += 1
        if self.validations == self.failing_at:
            raise RuntimeError("out of memory")
        zeros = [(layer.weight == 0).sum() for layer in (self.a, self.b)]
        lost = self.clash * zeros[0] * zeros[1]
        self.log("sum", self.a.weight.sum() + self.b.weight.sum() - lost)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return DataLoader(torch.randn(4, 5), batch_size=2)

    def val_dataloader(self):
        return DataLoader(torch.randn(1, 5))


def search(model, callback=None, **arguments):
    trainer = trainer_with(callback or PruningCallback())
    defaults = {"monitor": "sum", "mode": "max", "sparsities": GRID, "batches": 2}
    return search_sparsities(trainer, model, **(defaults | arguments))


# -- a tolerance -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tolerance", "a", "b"),
    [(0, None, None), (3, 0.2, None), (36, 0.8, None), (66, 0.8, 0.2), (70, 0.8, 0.2)],
)
def test_the_cheapest_within_the_tolerance_is_found(tolerance, a, b):
    # Alone, `a` loses 3, 15 or 36, and `b` 30, 150 or 360.
    found = search(Sums(), tolerance=tolerance)
    assert found.sparsity == {"a.weight": a, "b.weight": b}
    assert found.best.loss <= tolerance
    assert found.best.cost == 20 - 10 * (a or 0) - 10 * (b or 0)


def test_the_tolerance_holds_where_the_sum_misleads():
    # Eight zeros in `a` and two in `b` lose 36 + 30 alone, and 32 more together.
    found = search(Sums(clash=2.0), tolerance=70)
    assert found.sparsity == {"a.weight": 0.8, "b.weight": None}
    assert found.best.loss == 36
    knapsack = next(trial for trial in found.trials if trial.kind == "knapsack")
    assert (knapsack.predicted, knapsack.loss) == (66, 98)


def test_more_is_pruned_where_the_sum_is_too_high():
    found = search(Sums(clash=-2.0), tolerance=40)
    assert found.sparsity == {"a.weight": 0.8, "b.weight": 0.2}
    assert (found.best.predicted, found.best.loss) == (66, 34)


def test_the_metric_is_measured_in_the_result():
    model = Sums()
    found = search(model, tolerance=66)
    pruner = PruningCallback(sparsity=found.sparsity)
    after = prune_once(trainer_with(pruner), model).after
    assert after["sum"] == found.best.metric == found.dense.metric - found.best.loss


def test_a_metric_may_be_better_when_it_falls():
    class Negative(Sums):
        def log(self, name, value):
            super().log(name, -value)

    found = search(Negative(), mode="min", tolerance=36)
    assert found.sparsity == {"a.weight": 0.8, "b.weight": None}
    assert found.best.loss == 36


# -- a budget --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("keep", "a", "b"), [(0.6, 0.8, None), (0.5, 0.8, 0.2), (0.35, 0.8, 0.5)])
def test_the_least_loss_within_a_budget_is_found(keep, a, b):
    found = search(Sums(), budget=ParameterBudget(keep=keep))
    assert found.sparsity == {"a.weight": a, "b.weight": b}
    assert found.best.cost <= found.limit == 20 * keep
    assert found.unit == "parameters"


def test_multiply_adds_can_be_the_budget():
    found = search(Sums(), budget=MacsBudget(at_most=12))
    assert found.sparsity == {"a.weight": 0.8, "b.weight": None}
    assert (found.best.cost, found.unit) == (12, "macs")


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (ParameterBudget(at_most=3), "need a budget that the highest sparsities reach, .* is 4"),
        (ParameterBudget(at_most=20), "need a budget below the cost of the dense model"),
        (LatencyBudget(speedup=2.0), "need a pattern of whole channels for LatencyBudget"),
    ],
)
def test_a_budget_that_cannot_be_met_is_refused_before_a_trial(budget, message):
    model = Sums()
    with pytest.raises(ValueError, match=message):
        search(model, budget=budget)
    assert model.validations <= 1


# -- what a search leaves behind -------------------------------------------------------------------


@pytest.mark.parametrize("criterion", [None, TaylorCriterion()])
def test_the_model_is_unchanged(criterion, tmp_path):
    model = Model()
    before, hooks = state_of(model), registered(model)
    modes = [module.training for module in model.modules()]
    callback = PruningCallback(criterion=criterion)
    arguments = {"monitor": "val_loss", "mode": "min", "tolerance": 0.1, "trials": 4}
    search(model, callback, output=tmp_path / "search.ckpt", **arguments)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert registered(model) == hooks
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_checkpoint_has_the_measured_metric(tmp_path):
    model = Model()
    arguments = {"monitor": "val_loss", "mode": "min", "tolerance": 0.1}
    found = search(model, output=tmp_path / "search.ckpt", **arguments)
    saved = torch.load(tmp_path / "search.ckpt", weights_only=True)
    pruned = Model()
    pruned.load_state_dict(saved["state_dict"])
    (logged,) = trainer_with().validate(pruned, verbose=False)
    assert logged["val_loss"] == found.best.metric != found.dense.metric
    for name, sparsity in found.sparsity.items():
        weight = saved["state_dict"][name]
        assert int((weight == 0).sum()) == round(weight.numel() * (sparsity or 0))
    assert not torch.equal(
        saved["state_dict"]["net.1.running_mean"], model.state_dict()["net.1.running_mean"]
    )


def test_an_interrupted_search_measures_no_curve_again(tmp_path):
    model = Sums()
    model.failing_at = 6  # the dense model and four trials are done
    with pytest.raises(RuntimeError, match="out of memory"):
        search(model, tolerance=36, folder=tmp_path)
    model.validations, model.failing_at = 0, None
    resumed = search(model, tolerance=36, folder=tmp_path)
    trials = len(resumed.trials) - 1
    assert model.validations == 1 + 2 + trials
    model.validations = 0
    again = search(model, tolerance=36, folder=tmp_path)
    assert model.validations == 1 + trials
    assert again.trials == resumed.trials
    assert [curve.losses for curve in again.curves] == [curve.losses for curve in resumed.curves]


@pytest.mark.parametrize("change", ["weights", "recipe", "options"])
def test_curves_of_another_search_are_measured_again(change, tmp_path):
    model = Sums()
    search(model, tolerance=36, folder=tmp_path)
    model.validations = 0
    if change == "weights":
        model.a.weight.data[0, 0] += 1
    callback = PruningCallback(criterion=TaylorCriterion()) if change == "recipe" else None
    batches = 1 if change == "options" else 2
    found = search(model, callback, tolerance=36, folder=tmp_path, batches=batches)
    assert model.validations == 1 + 6 + len(found.trials) - 1


# -- channels and other patterns -------------------------------------------------------------------


class Channels(Model):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU()
        )
        self.net.append(nn.Linear(12, 4))
        self.example_input_array = torch.zeros(2, 8)

    def forward(self, inputs):
        return self.net(inputs)


@pytest.mark.usefixtures("traced_once")
@pytest.mark.parametrize("keep", [0.7, 0.4])
@pytest.mark.parametrize("kind", [ParameterBudget, MacsBudget])
def test_channels_meet_a_budget_when_they_are_removed(keep, kind, tmp_path):
    model = Channels()
    callback = PruningCallback(pattern=ChannelPattern(round_to=2))
    file = tmp_path / "search.ckpt"
    arguments = {"monitor": "val_loss", "mode": "min", "trials": 3, "output": file}
    found = search(model, callback, budget=kind(keep=keep), **arguments)
    assert found.best.cost <= keep * found.dense.cost
    model.load_state_dict(torch.load(file, weights_only=True)["state_dict"])
    smaller = shrink(model)
    if kind is ParameterBudget:
        assert sum(each.numel() for each in smaller.parameters()) == found.best.cost
    else:
        weights = sum(smaller.net[index].weight.numel() for index in (0, 3, 5))
        assert len(model.example_input_array) * weights == found.best.cost


@pytest.mark.usefixtures("traced_once")
def test_the_sparsities_of_channels_prune_the_same_channels(tmp_path):
    model = Channels()
    pattern, file = ChannelPattern(round_to=2), tmp_path / "search.ckpt"
    arguments = {"monitor": "val_loss", "mode": "min", "trials": 3, "output": file}
    found = search(model, PruningCallback(pattern=pattern), tolerance=0.05, **arguments)
    prune_once(trainer_with(PruningCallback(sparsity=found.sparsity, pattern=pattern)), model)
    saved = torch.load(file, weights_only=True)["state_dict"]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, saved[name])


def test_a_grid_fits_the_pattern():
    model = Model()
    callback = PruningCallback(sparsity=0.5, pattern=NMPattern(n=2, m=4))
    arguments = {"monitor": "val_loss", "mode": "min", "tolerance": 0.05, "trials": 3}
    found = search(model, callback, sparsities=(0.5,), **arguments)
    assert set(found.sparsity.values()) <= {0.5, None}
    with pytest.raises(ValueError, match=r"need sparsity 0 or at least 1 - n/m = 0\.5 for 2:4"):
        search(model, callback, sparsities=(0.4,), **arguments)


def test_a_cap_of_the_recipe_holds():
    found = search(Sums(), PruningCallback(sparsity=0.5, most=0.5), tolerance=1000)
    assert found.sparsity == {"a.weight": 0.5, "b.weight": 0.5}


# -- what is written -------------------------------------------------------------------------------


def test_what_is_written_can_be_read(tmp_path):
    found = search(Sums(), tolerance=66, folder=tmp_path)
    paths = found.write(tmp_path)
    assert [path.name for path in paths] == [f"search.{k}" for k in ("csv", "yaml", "png")]
    rows = list(csv.DictReader(paths[0].read_text().splitlines()))
    assert len(rows) == len(found.trials)
    assert rows[0]["kind"] == "dense"
    best = min((row for row in rows if float(row["loss"]) <= 66), key=lambda r: float(r["sum"]))
    assert (best["a.weight"], best["b.weight"], best["front"]) == ("0.8", "0.2", "1")
    assert yaml.safe_load(paths[1].read_text()) == {"sparsity": {"a.weight": 0.8, "b.weight": 0.2}}
    assert paths[2].read_bytes().startswith(b"\x89PNG")
    curves = list(csv.DictReader((tmp_path / "search_curves.csv").read_text().splitlines()))
    assert [float(row["sum"]) for row in curves] == [602, 590, 569, 575, 455, 245]


def test_the_front_holds_the_trials_that_none_beats():
    found = search(Sums(clash=2.0), tolerance=70)
    for trial in found.trials:
        beaten = any(other.cost <= trial.cost and other.loss < trial.loss for other in found.trials)
        assert (trial in found.front) == (not beaten)


def test_the_cost_of_a_search_is_told_first(capsys, tmp_path):
    search(Sums(), tolerance=36, trials=5, folder=tmp_path)
    printed = capsys.readouterr().out
    assert "at most 11 validations" in printed
    assert "6 with one of 2 groups pruned to one of 3 sparsities\n" in printed
    assert "new statistics" not in printed  # no batch normalization
    search(Sums(), tolerance=36, trials=5, folder=tmp_path)
    assert "(6 more are known from an earlier search)" in capsys.readouterr().out


def test_a_search_keeps_to_the_number_of_trials():
    model = Sums(clash=0.3)
    assert len(search(model, tolerance=70, trials=2).trials) == 3
    assert model.validations == 1 + 6 + 2


# -- arguments -------------------------------------------------------------------------------------

BUDGET = ParameterBudget(keep=0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "need exactly one of tolerance and budget, got tolerance=None and budget=None"),
        ({"tolerance": 1, "budget": BUDGET}, r"got tolerance=1.* and budget=ParameterBudget"),
        ({"tolerance": -1}, "need a finite tolerance >= 0, got tolerance=-1"),
        ({"tolerance": 1, "trials": 0}, "need trials >= 1, got trials=0"),
        ({"tolerance": 1, "batches": 0}, "need batches >= 1, got batches=0"),
        ({"tolerance": 1, "monitor": "sums"}, "got monitor='sums'; validation logs 'sum'"),
        ({"tolerance": 1, "mode": "up"}, "need mode as 'max' or 'min', got mode='up'"),
        ({"tolerance": 1, "sparsities": (0.9, 0.5)}, "need rising sparsities"),
        ({"tolerance": 1, "ckpt_path": "none.ckpt"}, "need an existing checkpoint"),
    ],
)
def test_a_bad_argument_is_refused(arguments, message):
    model = Sums()
    with pytest.raises(ValueError, match=message):
        search(model, **arguments)
    assert model.validations == ("monitor" in arguments)


def test_a_trainer_without_a_recipe_is_refused():
    with pytest.raises(ValueError, match="need a PruningCallback among the Trainer's callbacks"):
        search_sparsities(trainer_with(), Sums(), monitor="sum", mode="max", tolerance=1)
