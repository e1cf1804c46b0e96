"""Checkpoints of the best models that meet a budget."""

import warnings

import pytest
import torch

from lightning_prune import ParameterBudget, PolynomialSchedule, PruningCallback, SparsityCheckpoint
from tests.callbacks.conftest import Classifier

PARAMETERS = 16 * 32 + 32 * 4 + 32 + 4
HALF = ParameterBudget(keep=0.5)
RAMP = PolynomialSchedule(begin=0, end=3, unit="epoch", power=1)


def test_by_default_only_models_within_the_budget_are_among_the_best(fit, tmp_path):
    best = SparsityCheckpoint(monitor="score", mode="max", dirpath=tmp_path)
    fit(best, pruning=PruningCallback(budget=HALF, schedule=RAMP))
    assert best.best_model_score == 0.7
    state = torch.load(best.best_model_path, weights_only=True)["state_dict"]
    assert sum(int((value != 0).sum()) for value in state.values()) == PARAMETERS // 2


def test_the_budget_need_not_be_met_if_that_is_said(fit, tmp_path):
    any_model = SparsityCheckpoint(
        monitor="score", mode="max", dirpath=tmp_path / "any", budget_met=False
    )
    met = SparsityCheckpoint(monitor="score", mode="max", dirpath=tmp_path / "met", budget_met=True)
    fit(any_model, met, pruning=PruningCallback(budget=HALF, schedule=RAMP))
    assert any_model.best_model_score == 0.99
    assert met.best_model_score == 0.7


def test_a_budget_to_meet_needs_a_budget(fit, tmp_path):
    with pytest.raises(ValueError, match="need a budget to meet, got budget_met=True"):
        fit(SparsityCheckpoint(monitor="score", dirpath=tmp_path, budget_met=True))


def test_a_sparsity_and_a_budget_are_both_asked_for(fit, tmp_path):
    best = SparsityCheckpoint(sparsity=0.2, monitor="score", mode="max", dirpath=tmp_path)
    fit(best, pruning=PruningCallback(budget=HALF, schedule=RAMP))
    assert best.best_model_score == 0.7


def test_a_fit_that_never_meets_the_budget_warns_of_the_cost(fit, tmp_path):
    pruning = PruningCallback(budget=HALF, schedule=PolynomialSchedule(end=1.0))
    best = SparsityCheckpoint(monitor="score", mode="max", dirpath=tmp_path)

    class Stopped(Classifier):
        def on_train_epoch_end(self):
            self.trainer.should_stop = self.current_epoch == 1

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(best, pruning=pruning, model=Stopped())
    (said,) = [str(each.message) for each in caught if "considered no model" in str(each.message)]
    assert "parameters 0." in said
    assert said.endswith("of 0.5000; end the schedule earlier or ask for less")
    assert "sparsity 0." not in said
