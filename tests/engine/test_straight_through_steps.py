"""Steps that are skipped, fail or cannot be made, while pruned weights go on learning."""

import pytest
import torch

from lightning_prune import (
    MagnitudeCriterion,
    Pruner,
    StraightThrough,
)
from tests.engine.straight_through import AT_ONCE, attached, backward, flat_masks, start
from tests.engine.training import OPTIMIZERS, STEPS, Net, pruned_weights, train


def snapshot(model, pruner):
    rest = {name: values.clone() for name, values in pruner.state_dict()["rest"].items()}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    return {**weights, **{f"rest of {n}": v for n, v in rest.items()}, "masks": flat_masks(pruner)}


def assert_same(one, other):
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_a_step_that_is_skipped_changes_nothing():
    model, optimizer, pruner = attached()
    train(model, optimizer, pruner, steps=8)
    before = snapshot(model, pruner)
    backward(model)
    pruner.before_step(optimizer)
    pruner.skip_step(optimizer)
    assert_same(before, snapshot(model, pruner))
    assert pruner.steps == [8]


class Plain(torch.optim.Optimizer):
    """Gradient descent; ``fails`` in the middle of a step, or calls the closure ``again``."""

    fails = again = False

    def __init__(self, parameters):
        super().__init__(parameters, {})

    def step(self, closure=None):
        with torch.enable_grad():
            closure and closure()
        if self.fails:
            raise FloatingPointError("diverged")
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                parameter.sub_(parameter.grad, alpha=0.1)
        with torch.enable_grad():
            self.again and closure()


@pytest.mark.parametrize("in_closure", [False, True])
def test_a_step_that_fails_leaves_masked_weights_and_changes_no_value(in_closure):
    model = Net()
    optimizer = Plain(model.parameters())
    pruner = Pruner(sparsity=0.75, straight_through=StraightThrough(), schedule=AT_ONCE)
    pruner.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, pruner, steps=3)
    before = snapshot(model, pruner)

    def closure():
        optimizer.zero_grad()
        backward(model)
        pruner.before_step(optimizer)

    optimizer.fails = True
    if not in_closure:
        closure()
    with pytest.raises(FloatingPointError):
        optimizer.step(closure if in_closure else None)
    pruner.skip_step(optimizer)
    assert_same(before, snapshot(model, pruner))
    optimizer.fails = False
    train(model, optimizer, pruner, steps=3, first=3)
    pruner.detach()
    assert pruner.sparsity == 0.75


def test_a_closure_that_computes_the_gradients_in_the_step_trains_the_same():
    model, optimizer, pruner = attached("sgd")
    train(model, optimizer, pruner)
    other, its_optimizer, its_pruner = attached("sgd")
    for step in range(STEPS):

        def closure(step=step):
            its_optimizer.zero_grad()
            backward(other, step)
            its_pruner.before_step(its_optimizer)

        its_optimizer.step(closure)
        assert not pruned_weights(other, its_pruner).any()
    assert_same(snapshot(model, pruner), snapshot(other, its_pruner))


def test_a_detach_in_the_middle_of_a_step_leaves_masked_weights():
    model, optimizer, pruner = attached(schedule=AT_ONCE)
    train(model, optimizer, pruner, steps=3)

    def closure():
        optimizer.zero_grad()
        backward(model)
        pruner.before_step(optimizer)
        with pytest.raises(RuntimeError, match=r"need state_dict\(\) outside of optimizer.step"):
            pruner.state_dict()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    pruner.detach(completed=False)
    assert not pruned_weights(model, pruner).any()
    assert pruner.sparsity == 0.75


def test_a_trial_step_moves_neither_pruned_values_nor_masks():
    model, optimizer, pruner = start()
    pruner.attach(model, optimizer, steps=STEPS, is_trial_step=lambda optimizer: True)
    train(model, optimizer, pruner, steps=8)
    before = snapshot(model, pruner)
    backward(model)
    optimizer.step()
    assert not pruned_weights(model, pruner).any()
    after = snapshot(model, pruner)
    assert torch.equal(before["masks"], after["masks"])
    assert_same({k: v for k, v in before.items() if "rest" in k}, after)


class SAM(torch.optim.SGD):
    """Named as the optimizers that compute the loss twice a step."""


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, SAM])
def test_an_optimizer_that_calls_its_closure_again_is_refused_by_name(kind):
    model = Net()
    pruner = Pruner(straight_through=StraightThrough())
    with pytest.raises(ValueError, match=f"for straight_through, got {kind.__name__}"):
        pruner.attach(model, kind(model.parameters(), lr=0.1), steps=STEPS)


def test_a_second_call_in_a_step_is_refused_and_leaves_masked_weights():
    model = Net()
    optimizer = Plain(model.parameters())
    optimizer.again = True
    pruner = Pruner(sparsity=0.75, straight_through=StraightThrough(), schedule=AT_ONCE)
    pruner.attach(model, optimizer, steps=STEPS)

    def closure():
        optimizer.zero_grad()
        backward(model)
        pruner.before_step(optimizer)

    with pytest.raises(RuntimeError, match="need a single before_step"):
        optimizer.step(closure)
    assert not pruned_weights(model, pruner).any()


def test_gradients_that_were_scaled_are_not_added_to():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner = Pruner(sparsity=0.75, straight_through=StraightThrough(), schedule=AT_ONCE)
    pruner.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, pruner, steps=1)
    backward(model)
    pruner.before_step(optimizer)
    backward(model)
    with pytest.raises(RuntimeError, match="got another call with other gradients at step 1"):
        pruner.before_step(optimizer)


def test_a_weight_in_two_optimizers_is_refused_by_name():
    model = Net()
    optimizers = [OPTIMIZERS["sgd"](model.parameters()) for _ in range(2)]
    pruner = Pruner(straight_through=StraightThrough())
    with pytest.raises(
        ValueError, match=r"a single optimizer for each pruned weight .* '0.weight'"
    ):
        pruner.attach(model, optimizers, steps=STEPS)


def test_a_criterion_that_fails_in_the_step_leaves_masked_weights():
    model, optimizer, pruner = attached("sgd", schedule=AT_ONCE, criterion=MagnitudeCriterion())
    train(model, optimizer, pruner, steps=3)
    before = flat_masks(pruner)
    backward(model)
    pruner.before_step(optimizer)
    model[2].weight.grad[0, 0] = torch.nan
    with pytest.raises(ValueError, match="need finite scores"):
        optimizer.step()
    assert torch.equal(before, flat_masks(pruner))
    assert not pruned_weights(model, pruner).any()
