"""Budgets in a Trainer: logged, saved, resumed, and beside the other callbacks."""

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

from lightning_prune import (
    ChannelPattern,
    CosineSchedule,
    GlobalAllocation,
    LAMPAllocation,
    MacsBudget,
    MultiStepSchedule,
    ParameterBudget,
    PolynomialSchedule,
    PruningCallback,
    RandomCriterion,
    Regrow,
    Rewind,
    SparsityMonitor,
    UniformAllocation,
    UnstructuredPattern,
    measure_sensitivity,
    prune_once,
)
from tests.callbacks.conftest import Classifier
from tests.callbacks.models import Gan
from tests.callbacks.runs import STEPS, SaliencySum, Save, fit

WEIGHTS = 16 * 32 + 32 * 4
PARAMETERS = WEIGHTS + 32 + 4
HALF = ParameterBudget(keep=0.5)
MACS = MacsBudget(keep=0.5)


class Seen(Classifier):
    """Calls forward in validation, and has no example of the input."""

    def forward(self, values):
        return self.net(values)

    def validation_step(self, batch, batch_idx):
        self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())


class WithExample(Seen):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.example_input_array = torch.zeros(1, 16)


def count_nonzeros(model):
    return sum(int((parameter != 0).sum()) for parameter in model.parameters())


RECIPES = {
    "parameters": {"budget": HALF},
    "parameters, gathered scores": {
        "budget": HALF,
        "criterion": SaliencySum(),
        "allocation": GlobalAllocation(),
    },
    "LAMP, a limit": {"budget": HALF, "allocation": LAMPAllocation(), "most": 0.6},
    "multiply-adds, rows, a cap": {
        "budget": MACS,
        "pattern": UnstructuredPattern(per_row=True),
        "sparsity": {"net.2": None},
    },
    "both, random": {
        "budget": [MACS, ParameterBudget(keep=0.6)],
        "criterion": RandomCriterion(),
        "allocation": UniformAllocation(),
    },
    "channels": {"budget": MACS, "pattern": ChannelPattern(round_to=1)},
    "ranked channels": {
        "budget": [MACS, HALF],
        "pattern": ChannelPattern(round_to=4),
        "allocation": GlobalAllocation(),
        "criterion": SaliencySum(),
    },
    "regrowth": {
        "budget": HALF,
        "schedule": PolynomialSchedule(begin=0.0, end=0.5),
        "regrow": Regrow(schedule=CosineSchedule(begin=0.1, end=0.9, every=0.1)),
    },
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_resumed_after_any_step_equals_the_uninterrupted_one(name, tmp_path):
    def run(*callbacks, seed=0, **options):
        torch.manual_seed(seed)
        pruning = PruningCallback(**RECIPES[name])
        return fit(*callbacks, pruning=pruning, model=WithExample(), **options)

    whole, save = run(), Save(tmp_path)
    run(save)
    assert whole.pruning.pruner.spending.is_met
    for step in save.saved[::2]:
        resumed = run(resume=tmp_path / f"{step}.ckpt", seed=1)
        assert not whole.after(step).differences(resumed), step


def test_a_resumed_run_knows_the_example_that_the_sanity_check_saw(tmp_path):
    def run(*callbacks, seed=0, **options):
        torch.manual_seed(seed)
        pruning = PruningCallback(budget=MACS)
        return fit(*callbacks, pruning=pruning, model=Seen(), validate=True, **options)

    whole, save = run(), Save(tmp_path)
    run(save)
    (expense,) = whole.pruning.pruner.spending
    assert expense.limit.dense == WEIGHTS  # of a single sample
    for step in (1, 5, 7, 12):
        state = torch.load(tmp_path / f"{step}.ckpt", weights_only=True)
        (saved,) = state["callbacks"]["PruningCallback"]["example"]["arguments"]
        assert saved.shape == (1, 16)
        resumed = run(resume=tmp_path / f"{step}.ckpt", seed=1)
        assert not whole.after(step).differences(resumed), step


def test_optimizers_by_hand_share_a_budget_and_resume(tmp_path):
    def run(*callbacks, seed=0, **options):
        torch.manual_seed(seed)
        pruning = PruningCallback(budget=HALF, allocation=GlobalAllocation())
        return fit(*callbacks, pruning=pruning, model=Gan(), **options)

    whole, save = run(), Save(tmp_path)
    run(save)
    assert count_nonzeros(whole.model) == (2 * 16 * 17) // 2
    for step in save.saved[1:-1:4]:
        resumed = run(resume=tmp_path / f"{step}.ckpt", seed=1)
        first = min(resumed.curve, default=STEPS)
        assert not whole.after(first).differences(resumed), step


@pytest.mark.parametrize("budget", [MACS, HALF, [MACS, HALF]])
def test_each_cost_and_the_cost_that_is_due_are_logged(budget):
    run = fit(pruning=PruningCallback(budget=budget), model=WithExample())
    units = [each.unit for each in run.pruning.recipe.budgets]
    for unit in ("macs", "parameters"):
        logged = [at[unit] for at in run.curve.values() if unit in at]
        due = [at[f"{unit}_target"] for at in run.curve.values() if f"{unit}_target" in at]
        if unit not in units:
            assert logged == due == []
            continue
        assert logged[0] == due[0] == 1.0
        assert logged == sorted(logged, reverse=True)
        assert due == sorted(due, reverse=True)
        assert all(cost <= limit for cost, limit in zip(logged, due, strict=True))
        assert due[-1] == 0.5
    last = list(run.curve.values())[-1]
    assert last["sparsity"] == pytest.approx(1 - (count_nonzeros(run.model) - 36) / WEIGHTS)
    assert last["sparsity_target"] == last["sparsity"]


def test_without_a_budget_no_cost_is_logged():
    run = fit(pruning=PruningCallback())
    names = {name for logged in run.curve.values() for name in logged}
    assert names == {"sparsity", "sparsity_target"}
    assert run.pruning.sparsity == 0.9


def read_rows(printed):
    rows = [[cell for cell in line.split() if cell != "│"] for line in printed.splitlines()]
    return [row for row in rows if row and row[0].startswith("net.")]


def test_the_tables_show_the_plan_the_budget_and_what_was_reached(capsys):
    pruning = PruningCallback(budget=[HALF, MacsBudget(keep=0.9)])
    fit(pruning=pruning, model=WithExample(), enable_model_summary=True)
    first, last = capsys.readouterr().out.split("Pruned")
    assert "ParameterBudget(keep=0.5): at most 338 of 676 parameters" in " ".join(first.split())
    assert "now 676 (1.0000)" in " ".join(first.split())
    assert "now 338 (0.5000)" in " ".join(last.split())
    assert "the tightest budget is ParameterBudget(keep=0.5)" in " ".join(last.split())
    planned, reached = read_rows(first), read_rows(last)
    assert [row[-1] for row in planned] == [row[-1] for row in reached]  # ERK is known at once
    assert [row[-2] for row in reached] == [row[-1] for row in planned]


def test_a_limit_of_each_tensor_is_in_the_table(capsys):
    pruning = PruningCallback(sparsity=0.9, most=0.92, allocation=GlobalAllocation())
    run = fit(pruning=pruning, enable_model_summary=True)
    assert run.pruning.sparsity == 0.9
    assert "0.92" in capsys.readouterr().out.split("Pruned")[1]


# -- beside other answers --------------------------------------------------------------------------


def test_zeros_that_are_kept_count_towards_the_budget():
    model = Classifier()
    with torch.no_grad():
        model.net[0].weight[:24] = 0
    before = count_nonzeros(model)
    assert before < 0.5 * PARAMETERS
    run = fit(pruning=PruningCallback(budget=HALF, keep_zeros=True), model=model)
    assert run.pruning.pruner.spending.is_met
    assert int((run.model.net[0].weight != 0).sum()) == 8 * 16
    assert run.model.net[2].weight.all()


def test_rewinding_goes_through_rounds_of_costs():
    schedule = MultiStepSchedule(milestones=(4, 8, 12), unit="step")
    pruning = PruningCallback(budget=HALF, schedule=schedule, rewind=Rewind(to=2))
    run = fit(pruning=pruning)
    costs = [logged["parameters"] for logged in run.curve.values() if "parameters" in logged]
    assert len(set(costs)) == 4
    assert count_nonzeros(run.model) <= PARAMETERS // 2


def test_an_average_is_within_the_budget(make_model, make_trainer, loader):
    average = EMAWeightAveraging(decay=0.5)
    model, pruning = make_model(), PruningCallback(budget=HALF)
    make_trainer(pruning, average).fit(model, loader)
    assert count_nonzeros(model) == PARAMETERS // 2


def test_a_copy_is_masked_to_the_budget():
    run = fit(pruning=PruningCallback(budget=HALF))
    torch.manual_seed(5)
    copy = Classifier()
    run.pruning.pruner.mask_copy(copy)
    assert count_nonzeros(copy) == PARAMETERS // 2


def test_the_callback_serves_another_model_afterwards(make_trainer, loader):
    pruning = PruningCallback(budget=MACS)
    make_trainer(pruning).fit(Seen(), loader, loader)
    assert pruning.pruner.spending.is_met
    with pytest.raises(ValueError, match="need an example of the arguments of forward"):
        make_trainer(pruning, num_sanity_val_steps=0).fit(Seen(), loader, loader)


def test_without_an_example_the_error_comes_before_training():
    with pytest.raises(ValueError, match="need an example of the arguments of forward"):
        fit(pruning=PruningCallback(budget=MACS), model=Seen())
    run = fit(pruning=PruningCallback(budget=MACS, example=torch.zeros(1, 16)), model=Seen())
    assert run.pruning.pruner.spending.is_met


def test_a_budget_that_cannot_be_reached_names_the_least_and_the_dense_parts():
    pruning = PruningCallback(budget=ParameterBudget(keep=0.2), sparsity={"net.2": None})
    least = 1 + 32 * 4 + 36
    with pytest.raises(ValueError, match="need a budget that can be reached") as caught:
        fit(pruning=pruning)
    assert f"the least is {least} parameters, {least / PARAMETERS:.4f}" in str(caught.value)
    assert "'net.2.weight' 128, 'net.0.bias' 32, 'net.2.bias' 4" in str(caught.value)


def test_a_budget_above_the_dense_cost_is_refused():
    with pytest.raises(ValueError, match=r"ParameterBudget\(at_most=1000000\) for 676 parameters"):
        fit(pruning=PruningCallback(budget=ParameterBudget(at_most=1_000_000)))


def test_a_training_that_stops_too_early_says_how_far_it_came():
    schedule = PolynomialSchedule(begin=0, end=STEPS, unit="step")
    pruning = PruningCallback(budget=HALF, schedule=schedule)

    class Stopped(Classifier):
        def on_train_epoch_end(self):
            self.trainer.should_stop = True

    with pytest.warns(UserWarning, match=r"training stopped before .*parameters 0\.\d+ of 0\.5"):
        fit(pruning=pruning, model=Stopped())


# -- without training ------------------------------------------------------------------------------


@pytest.mark.parametrize("allocation", [None, GlobalAllocation()])
def test_one_update_lands_on_the_budget(allocation, make_trainer, loader):
    class Ready(WithExample):
        def train_dataloader(self):
            return loader

        val_dataloader = train_dataloader

    model = Ready()
    pruning = PruningCallback(budget=[MACS, ParameterBudget(keep=0.6)], allocation=allocation)
    report = prune_once(make_trainer(pruning), model)
    assert report.pruner.spending.is_met
    assert count_nonzeros(model) == WEIGHTS // 2 + 36


def test_sensitivity_is_measured_beside_a_budget(make_trainer, loader):
    class Ready(WithExample):
        def train_dataloader(self):
            return loader

        val_dataloader = train_dataloader

    pruning = PruningCallback(budget=MACS)
    measured = measure_sensitivity(
        make_trainer(pruning), Ready(), monitor="val_acc", mode="max", sparsities=(0.5, 0.95)
    )
    assert {name: list(found) for name, found in measured.metrics.items()} == {
        "net.0.weight": [0.5, 0.95],
        "net.2.weight": [0.5, 0.95],
    }


def test_the_monitor_shows_sparsities_and_targets_that_agree(tmp_path):
    run = fit(
        SparsityMonitor(quality="val_acc"),
        pruning=PruningCallback(budget=MACS),
        model=WithExample(),
        validate=True,
    )
    last = [logged for logged in run.curve.values() if "sparsity/overall" in logged][-1]
    for name in ("overall", "net.0.weight", "net.2.weight"):
        assert last[f"sparsity/{name}"] == last[f"sparsity_target/{name}"]
    assert last["sparsity/overall"] == 0.5
