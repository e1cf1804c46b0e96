"""A step is observed once, with the gradients that it is made with."""

import pytest
import torch

from lightning_prune import (
    GradientCriterion,
    MagnitudeCriterion,
    MovementCriterion,
    OneShotSchedule,
    PolynomialSchedule,
    Pruner,
    Regrow,
    TaylorCriterion,
)
from tests.engine.zero_keeping import STEPS, assert_zeros, backward, make_model

LATE = OneShotSchedule(end=STEPS, unit="step")
RAMP = PolynomialSchedule(begin=0, end=STEPS, every=1, unit="step")


def start(make=lambda p: torch.optim.SGD(p, lr=0.1), *, schedule=LATE, **answers):
    model = make_model()
    optimizer = make(model.parameters())
    pruner = Pruner(sparsity=0.5, schedule=schedule, **answers)
    pruner.attach(model, optimizer, steps=STEPS)
    return model, optimizer, pruner


def accumulate(model, batch):
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(batch))
    model(x).square().mean().backward()


@pytest.mark.parametrize(
    "answers",
    [
        {"criterion": MovementCriterion()},
        {"criterion": TaylorCriterion()},
        {"criterion": GradientCriterion()},
        {"regrow": Regrow(schedule=RAMP, first=None)},
    ],
    ids=["movement", "taylor", "gradient", "regrowth"],
)
def test_a_second_call_with_more_gradients_is_refused_and_changes_nothing(answers):
    model, optimizer, pruner = start(**answers)
    accumulate(model, 0)
    pruner.before_step(optimizer)
    accumulate(model, 1)
    gradient = model[0].weight.grad.clone()
    with pytest.raises(RuntimeError, match=r"a single before_step.*after the last backward"):
        pruner.before_step(optimizer)
    assert torch.equal(model[0].weight.grad, gradient)
    optimizer.step()
    assert pruner.steps == [1]


def test_one_call_after_the_last_backward_observes_the_sum_of_all_gradients():
    model, optimizer, pruner = start(criterion=TaylorCriterion())
    weights = model[0].weight.detach().clone()
    for batch in range(3):
        accumulate(model, batch)
    expected = (weights * model[0].weight.grad).abs()
    pruner.before_step(optimizer)
    optimizer.step()
    assert torch.equal(pruner.state_dict()["observed"]["0.weight"]["sum"], expected)


def test_a_second_call_with_the_same_gradients_observes_nothing():
    model, optimizer, pruner = start(criterion=TaylorCriterion())
    accumulate(model, 0)
    pruner.before_step(optimizer)
    pruner.before_step(optimizer)
    optimizer.step()
    assert pruner.state_dict()["observed"]["0.weight"]["steps"] == 1


def test_a_criterion_that_reads_weights_only_does_not_mind():
    model, optimizer, pruner = start(
        criterion=MagnitudeCriterion(), schedule=OneShotSchedule(end=0)
    )
    for batch in range(3):
        accumulate(model, batch)
        pruner.before_step(optimizer)
    optimizer.step()
    assert_zeros(pruner)


def test_a_step_that_is_skipped_by_name_makes_room_for_the_next_one():
    model, optimizer, pruner = start(criterion=TaylorCriterion())
    backward(model, optimizer, 0)
    pruner.before_step(optimizer)
    pruner.skip_step(optimizer)
    backward(model, optimizer, 1)
    pruner.before_step(optimizer)
    optimizer.step()
    assert pruner.steps == [1]
    assert pruner.state_dict()["observed"]["0.weight"]["steps"] == 2


class Twice(torch.optim.Optimizer):
    """Calls its closure twice in a step, as sharpness-aware minimization does."""

    def step(self, closure):
        closure()
        closure()
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                parameter.sub_(parameter.grad, alpha=0.1)


@pytest.mark.parametrize(
    "make",
    [lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=4), lambda p: Twice(p, {})],
    ids=["LBFGS", "twice"],
)
def test_closures_that_are_called_again_within_a_step_are_observed_once(make):
    model, optimizer, pruner = start(make, criterion=TaylorCriterion())
    calls = []

    def closure():
        backward(model, optimizer, len(calls))
        calls.append(optimizer)
        pruner.before_step(optimizer)
        return model(torch.ones(1, 8)).square().mean()

    for _ in range(2):
        optimizer.step(closure)
    assert len(calls) > 2
    assert pruner.steps == [2]
    assert pruner.state_dict()["observed"]["0.weight"]["steps"] == 2
