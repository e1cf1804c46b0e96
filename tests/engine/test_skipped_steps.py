"""A gradient scaler that skips steps is asked only where the masks may change."""

import pytest
import torch

from lightning_prune import PolynomialSchedule, Pruner, StraightThrough, TaylorCriterion
from tests.accelerators import waits_of_the_host
from tests.engine.training import OPTIMIZERS, Net, pruned_weights

RAMP = PolynomialSchedule(begin=0, end=9, every=3, unit="step")
STEPS = 12


def make_fused(parameters):
    return torch.optim.AdamW(parameters, lr=0.01, fused=True)


def start(make, **recipe):
    model = Net()
    optimizer = make(model.parameters())
    pruner = Pruner(**{"sparsity": 0.75, "schedule": RAMP, **recipe})
    pruner.attach(model, optimizer, steps=STEPS, hook=True)
    return model, optimizer, pruner, torch.amp.GradScaler("cpu", init_scale=8.0)


def step(model, optimizer, pruner, scaler, *, is_infinite=False, unscales=False):
    """Make a step; return how often the host waits inside of it."""
    optimizer.zero_grad()
    x = torch.randn(8, 4, 8, generator=torch.Generator().manual_seed(pruner.updates))
    scaler.scale(model(x).square().mean()).backward()
    if is_infinite:
        model[0].weight.grad[0, 0, 0] = float("inf")
    if unscales:
        scaler.unscale_(optimizer)
    with waits_of_the_host() as waits:
        scaler.step(optimizer)
    scaler.update()
    return len(waits)


@pytest.mark.parametrize(("make", "own"), [(make_fused, 0), (OPTIMIZERS["sgd"], 1)])
def test_a_step_without_update_does_not_wait_for_the_gradients(make, own):
    training = start(make)
    waits = [step(*training) for _ in range(STEPS)]
    at_rest = [number for index, number in enumerate(waits) if index not in (0, 3, 6, 9)]
    assert at_rest == [own] * 8  # the scaler itself waits for a step that it makes itself
    assert training[2].steps == [STEPS]


@pytest.mark.parametrize("make", [make_fused, OPTIMIZERS["sgd"]], ids=["fused", "plain"])
@pytest.mark.parametrize("skipped", [{1}, {2, 3}, {0, 4, 5}, {3, 6}, set(range(2, 11, 2))])
def test_skipped_steps_move_the_due_points_all_the_same(skipped, make):
    training = start(make)
    model, _, pruner, _ = training
    made, reached = 0, []
    for index in range(STEPS + len(skipped)):
        before = pruner.sparsity
        step(*training, is_infinite=index in skipped)
        if index in skipped:
            assert pruner.sparsity == before
        else:
            made += 1
            reached.append(pruner.sparsity)
        assert not pruned_weights(model, pruner).any()
    assert pruner.steps == [made] == [STEPS]
    whole = start(make)
    expected = []
    for _ in range(STEPS):
        step(*whole)
        expected.append(whole[2].sparsity)
    assert reached == expected


def test_a_state_between_updates_holds_the_steps_that_were_made():
    training = start(make_fused)
    for index in range(5):
        step(*training, is_infinite=index in (1, 4))
    assert training[2].state_dict()["steps"] == [3]


@pytest.mark.parametrize(
    "recipe", [{"criterion": TaylorCriterion()}, {"straight_through": StraightThrough()}]
)
def test_a_recipe_that_works_at_each_step_asks_at_each_step(recipe):
    training = start(make_fused, **recipe)
    pruner, made = training[2], 0
    for index in range(STEPS):
        assert pruner.is_eventful(training[1])
        before = pruner.state_dict()["observed"]
        is_infinite = index % 4 == 1
        step(*training, is_infinite=is_infinite, unscales=True)
        made += not is_infinite
        assert pruner.steps == [made]
        if is_infinite:
            assert str(pruner.state_dict()["observed"]) == str(before)
