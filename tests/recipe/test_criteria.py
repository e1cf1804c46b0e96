import pytest
import torch
from torch import nn

from lightning_prune import (
    Criterion,
    FisherCriterion,
    GlobalAllocation,
    GradientCriterion,
    MagnitudeCriterion,
    MovementCriterion,
    OneShotSchedule,
    Pruner,
    RandomCriterion,
    TaylorCriterion,
)
from tests.conftest import answers
from tests.recipe.tensors import make_tensor


def test_magnitude_is_the_absolute_value():
    pruned = make_tensor()
    assert torch.equal(MagnitudeCriterion().score(pruned, {}), pruned.parameter.abs())


def test_random_scores_depend_on_seed_step_and_name():
    scores = [
        RandomCriterion(seed=seed).score(make_tensor(name, step), {})
        for seed, name, step in [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]
    ]
    assert all(not torch.equal(scores[0], other) for other in scores[1:])
    assert 0 <= scores[0].min() <= scores[0].max() < 1


def test_the_gradient_criterion_is_the_absolute_gradient_of_the_present_step():
    pruned = make_tensor()
    assert torch.equal(GradientCriterion().score(pruned, {}), pruned.parameter.grad.abs())


def step(pruned, weights, gradient):
    pruned.weights[:] = torch.tensor(weights)
    pruned.parameter.grad[:] = torch.tensor(gradient)


def test_taylor_is_the_mean_of_weight_times_gradient():
    pruned, criterion = make_tensor(shape=(1, 3)), TaylorCriterion()
    step(pruned, [[1.0, -2.0, 3.0]], [[-4.0, 0.5, 0.0]])
    state = criterion.observe(pruned, {})
    assert criterion.score(pruned, state).tolist() == [[4.0, 1.0, 0.0]]
    step(pruned, [[2.0, 2.0, 3.0]], [[1.0, 0.5, -2.0]])
    state = criterion.observe(pruned, state)
    assert criterion.score(pruned, state).tolist() == [[3.0, 1.0, 3.0]]


def test_fisher_is_half_the_squared_weight_times_the_mean_squared_gradient():
    pruned, criterion = make_tensor(shape=(1, 2)), FisherCriterion()
    step(pruned, [[1.0, 1.0]], [[-4.0, 0.0]])
    state = criterion.observe(pruned, {})
    step(pruned, [[3.0, -2.0]], [[2.0, 1.0]])
    state = criterion.observe(pruned, state)
    assert criterion.score(pruned, state).tolist() == [[45.0, 1.0]]


def test_movement_adds_up_what_moves_away_from_zero():
    pruned, criterion = make_tensor(shape=(1, 4)), MovementCriterion()
    state = {}
    for _ in range(3):
        step(pruned, [[1.0, -2.0, 0.5, -1.0]], [[-4.0, 0.5, 2.0, -1.0]])
        state = criterion.observe(pruned, state)
    assert criterion.score(pruned, state).tolist() == [[12.0, 3.0, -3.0, -3.0]]
    pruned.prune_to(torch.tensor([[True, False, True, True]]))
    pruned.weights.mul_(pruned.mask.kept)
    state = criterion.observe(pruned, state)
    assert criterion.score(pruned, state).tolist() == [[16.0, 0.0, -4.0, -4.0]]


@pytest.mark.parametrize("kind", [TaylorCriterion, MovementCriterion])
def test_sums_are_kept_in_a_precision_that_holds_them(kind):
    for dtype, wide in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        pruned, state = make_tensor(dtype=dtype), {}
        pruned.weights[:], pruned.parameter.grad[:] = -1.0, 1.0
        for _ in range(300):  # in bfloat16, 256 + 1 is 256
            state = kind().observe(pruned, state)
        assert kind().score(pruned, state).dtype == wide
        assert kind().score(pruned, state)[0, 0] in (1.0, 300.0)


def pruned_at_the_first_step(criterion):
    """Return the mask of the weights 3, -2, 1 and 0.5 at sparsity 0.5, and the gradients."""
    model = nn.Linear(4, 1, bias=False)
    model.weight.data = torch.tensor([[3.0, -2.0, 1.0, 0.5]])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Pruner(sparsity=0.5, schedule=OneShotSchedule(end=0), criterion=criterion)
    pruner.attach(model, optimizer, steps=1)
    (-model(torch.tensor([[3.0, -2.0, 0.5, -0.1]]))).sum().backward()
    gradient = model.weight.grad.clone()
    pruner.before_step(optimizer)
    return pruner.masks["weight"].tolist(), gradient


@pytest.mark.parametrize("kind", sorted(set(answers(Criterion)) - {RandomCriterion}, key=str))
def test_a_large_weight_of_large_inputs_that_grows_is_kept(kind):
    assert pruned_at_the_first_step(kind())[0] == [[True, True, False, False]]


def test_taylor_at_step_0_is_snip():
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    x, y = torch.randn(8, 6), torch.arange(8) % 3
    nn.functional.cross_entropy(model(x), y).backward()
    saliency = [(model[i].weight * model[i].weight.grad).abs() for i in (0, 2)]
    threshold = torch.cat([s.flatten() for s in saliency]).sort().values[-9]
    model.zero_grad()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Pruner(
        sparsity=0.8,
        schedule=OneShotSchedule(end=0),
        allocation=GlobalAllocation(),
        criterion=TaylorCriterion(),
    )
    pruner.attach(model, optimizer, steps=1)
    nn.functional.cross_entropy(model(x), y).backward()
    pruner.before_step(optimizer)
    for mask, of_layer in zip(pruner.masks.values(), saliency, strict=True):
        assert torch.equal(mask, of_layer >= threshold)


@pytest.mark.parametrize(
    "kind", [GradientCriterion, TaylorCriterion, FisherCriterion, MovementCriterion]
)
def test_a_tensor_without_a_gradient_is_named(kind):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Pruner(schedule=OneShotSchedule(end=0), criterion=kind())
    pruner.attach(model, optimizer, steps=1)
    model[0](torch.randn(2, 4)).sum().backward()
    with pytest.raises(ValueError, match=r"need a gradient, got none for '1\.weight' at step 0"):
        pruner.before_step(optimizer)


@pytest.mark.parametrize("kind", [TaylorCriterion, FisherCriterion, MovementCriterion])
def test_an_update_before_any_step_is_refused_by_what_gathers(kind):
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Pruner(schedule=OneShotSchedule(end=0), criterion=kind())
    pruner.attach(model, optimizer, steps=1)
    with pytest.raises(ValueError, match=r"need a step .* got none for 'weight' at step 0"):
        pruner.update(optimizer)


def test_sparse_gradients_are_scored_too():
    model = nn.Embedding(4, 3, sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Pruner(
        sparsity={"weight": 0.5}, schedule=OneShotSchedule(end=0), criterion=TaylorCriterion()
    )
    pruner.attach(model, optimizer, steps=1)
    model(torch.tensor([1, 3])).sum().backward()
    pruner.before_step(optimizer)
    assert pruner.masks["weight"].all(1).tolist() == [False, True, False, True]
