"""`Pruner.attach(..., hook=True)`: the optimizer itself calls `before_step`."""

import pytest
import torch

from lightning_prune import (
    CosineSchedule,
    GradientCriterion,
    MagnitudeCriterion,
    Phases,
    PolynomialSchedule,
    Pruner,
    Regrow,
    StraightThrough,
    TaylorCriterion,
    UnstructuredPattern,
    WandaCriterion,
)
from tests.engine.training import OPTIMIZERS, STEPS, Net, pruned_weights, train
from tests.hooks import hooks

TURNS = {"begin": 0.2, "end": 0.8, "unit": "fraction"}
RECIPES = {
    "magnitude": {},
    "Taylor": {"criterion": TaylorCriterion()},
    "Wanda": {"criterion": WandaCriterion(), "pattern": UnstructuredPattern(per_row=True)},
    "RigL": {"regrow": Regrow(criterion=GradientCriterion(), schedule=CosineSchedule(every=0.2))},
    "straight-through": {"straight_through": StraightThrough()},
    "straight-through with Taylor": {
        "straight_through": StraightThrough(),
        "criterion": TaylorCriterion(),
    },
    "phases": {"phases": Phases(), "schedule": PolynomialSchedule(begin=0.0, end=0.2)},
}


def start(make=OPTIMIZERS["adamw"], *, hook=True, **recipe):
    model = Net()
    optimizer = make(model.parameters())
    pruner = Pruner(**{"sparsity": 0.75, **recipe})
    pruner.attach(model, optimizer, steps=STEPS, hook=hook)
    return model, optimizer, pruner


def backward(model, step, scale=lambda loss: loss):
    x = torch.randn(8, 4, 8, generator=torch.Generator().manual_seed(step))
    scale(model(x).square().mean()).backward()


def train_by_hook(model, optimizer, pruner):
    for step in range(STEPS):
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()
        if pruner.recipe.phases is None:
            assert not pruned_weights(model, pruner).any()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_the_hook_trains_the_same_as_the_line_in_the_loop(recipe, optimizer):
    by_line = start(OPTIMIZERS[optimizer], hook=False, **recipe)
    train(*by_line)
    by_hook = start(OPTIMIZERS[optimizer], **recipe)
    train_by_hook(*by_hook)
    for model, optimizer, pruner in (by_line, by_hook):
        pruner.detach()
        assert not hooks(model, optimizer)
        assert round(pruner.sparsity, 4) == 0.75
    for name, weights in by_line[0].state_dict().items():
        assert torch.equal(weights, by_hook[0].state_dict()[name]), name


def test_the_hook_sees_accumulated_gradients():
    observed = []
    for hook in (True, False):
        model, optimizer, pruner = start(criterion=TaylorCriterion(), hook=hook)
        for step in range(6):
            backward(model, step)
            if step % 3 == 2:
                if not hook:
                    pruner.before_step(optimizer)
                optimizer.step()
                optimizer.zero_grad()
        assert pruner.steps == [2]
        observed.append(pruner.state_dict()["observed"]["0.weight"])
    for name, values in observed[0].items():
        assert torch.equal(torch.as_tensor(values), torch.as_tensor(observed[1][name]))


def make_fused(parameters):
    return torch.optim.AdamW(parameters, lr=0.01, fused=True)


def step_scaled(model, optimizer, scaler, step, *, is_infinite=False, unscales=False):
    optimizer.zero_grad()
    backward(model, step, scale=scaler.scale)
    if is_infinite:
        model[0].weight.grad[0, 0, 0] = float("inf")
    if unscales:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("unscales", [False, True])
@pytest.mark.parametrize("make", [OPTIMIZERS["adamw"], make_fused], ids=["plain", "fused"])
def test_a_step_that_the_scaler_skips_is_neither_observed_nor_counted(make, unscales):
    model, optimizer, pruner = start(make)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for step in range(4):
        step_scaled(model, optimizer, scaler, step, unscales=unscales)
    weights, masks = model[0].weight.detach().clone(), pruner.masks
    step_scaled(model, optimizer, scaler, 4, is_infinite=True, unscales=unscales)
    assert pruner.steps == [4]
    assert torch.equal(model[0].weight, weights)
    assert all(torch.equal(mask, pruner.masks[name]) for name, mask in masks.items())
    for step in range(4, STEPS):
        step_scaled(model, optimizer, scaler, step, unscales=unscales)
    pruner.detach()
    assert pruner.steps == [STEPS]
    assert pruner.sparsity == 0.75


def test_scaled_gradients_of_a_fused_optimizer_are_refused_where_a_criterion_reads_them():
    model, optimizer, _ = start(make_fused, criterion=TaylorCriterion())
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with pytest.raises(RuntimeError, match=r"call scaler.unscale_\(optimizer\) before"):
        step_scaled(model, optimizer, scaler, 0)


def test_unscaled_gradients_of_a_fused_optimizer_are_observed_as_those_of_another_one():
    found = []
    for make, scale in ((make_fused, 8.0), (OPTIMIZERS["adamw"], 1.0)):
        model, optimizer, pruner = start(make, criterion=TaylorCriterion())
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        step_scaled(model, optimizer, scaler, 0, unscales=True)
        found.append(pruner.state_dict()["observed"]["0.weight"])
    for name, values in found[0].items():
        torch.testing.assert_close(values, found[1][name])


def test_a_skipped_step_of_a_fused_optimizer_needs_no_check_in_a_loop_without_the_hook():
    model, optimizer, pruner = start(make_fused, hook=False)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    backward(model, 0, scale=scaler.scale)
    model[0].weight.grad[0, 0, 0] = float("inf")
    pruner.skip_step(optimizer)
    scaler.step(optimizer)
    assert pruner.steps == [0]


@pytest.mark.parametrize("named", [False, True])
def test_a_closure_is_refused_with_the_remedy(named):
    model, optimizer, pruner = start()

    def closure():
        backward(model, 0)

    with pytest.raises(RuntimeError, match=r"step\(\) without a closure .* attach with hook=False"):
        optimizer.step(closure=closure) if named else optimizer.step(closure)
    backward(model, 0)
    optimizer.step(None)  # as Accelerate calls it
    assert pruner.steps == [1]


def test_a_call_of_before_step_beside_the_hook_is_refused():
    model, optimizer, pruner = start()
    backward(model, 0)
    with pytest.raises(RuntimeError, match=r"no before_step\(optimizer\) after attach"):
        pruner.before_step(optimizer)
    optimizer.step()
    pruner.detach(completed=False)
    pruner.attach(model, optimizer, steps=STEPS)
    pruner.before_step(optimizer)


def test_a_trial_step_is_masked_and_not_counted():
    model = Net()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    pruner = Pruner(criterion=MagnitudeCriterion())
    is_trial = True
    pruner.attach(
        model, optimizer, steps=STEPS, hook=True, is_trial_step=lambda optimizer: is_trial
    )
    backward(model, 0)
    optimizer.step()
    assert pruner.steps == [0]
    is_trial = False
    optimizer.step()
    assert pruner.steps == [1]


def test_a_failed_step_is_observed_once_and_the_next_step_goes_on():
    model, optimizer, pruner = start()

    def fail(*_):
        raise FloatingPointError("diverged")

    train_by_hook(model, optimizer, pruner)
    handle = optimizer.register_step_pre_hook(fail)
    backward(model, 0)
    with pytest.raises(FloatingPointError):
        optimizer.step()
    handle.remove()
    assert pruner.steps == [STEPS]
    optimizer.step()
    assert pruner.steps == [STEPS + 1]
    assert not pruned_weights(model, pruner).any()


@pytest.mark.slow
def test_a_compiled_step_works_with_the_hook():
    model, optimizer, pruner = start()
    step = torch.compile(optimizer.step, backend="eager")
    for number in range(STEPS):
        optimizer.zero_grad()
        backward(model, number)
        step()
    pruner.detach()
    assert pruner.sparsity == 0.75
