"""Pruned weights go on learning behind the mask, and the model between steps is sparse."""

import pytest
import torch
from torch import nn

from lightning_prune import (
    ERKAllocation,
    GlobalAllocation,
    GradientCriterion,
    MacsBudget,
    MovementCriterion,
    NMPattern,
    PolynomialSchedule,
    Pruner,
    StraightThrough,
    TaylorCriterion,
    UniformAllocation,
    UnstructuredPattern,
)
from tests.engine.straight_through import AT_ONCE, attached, backward, flat_masks, start
from tests.engine.training import EXAMPLE, OPTIMIZERS, STEPS, TOTAL, Net, pruned_weights, train


def by_hand(model, optimizer, sparsity, steps, scale):
    """Train with a dense copy of each weight; each tensor keeps its largest weights."""
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    dense = [weight.detach().clone() for weight in weights]
    for step in range(steps):
        optimizer.zero_grad()
        backward(model, step)
        with torch.no_grad():
            for weight, copy in zip(weights, dense, strict=True):
                weight.grad.mul_(torch.where(weight == 0, scale, 1.0))
                weight.copy_(copy)
            optimizer.step()
            for weight, copy in zip(weights, dense, strict=True):
                copy.copy_(weight)
                keep = round(copy.numel() * (1 - sparsity))
                kept = copy.abs().flatten().topk(keep).indices
                weight.copy_(
                    torch.zeros_like(copy)
                    .flatten()
                    .index_copy_(0, kept, copy.flatten()[kept])
                    .view_as(copy)
                )


@pytest.mark.parametrize("scale", [1, 0.25, 0.1])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_equals_a_loop_with_dense_copies_by_hand(optimizer, scale):
    model, ours, pruner = attached(
        optimizer, gradient_scale=scale, schedule=AT_ONCE, allocation=UniformAllocation()
    )
    train(model, ours, pruner)
    alone = Net()
    by_hand(alone, OPTIMIZERS[optimizer](alone.parameters()), 0.75, STEPS, scale)
    for name, value in alone.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_outside_of_a_step_pruned_weights_are_zero_and_counts_are_exact(optimizer):
    model, optimizer, pruner = attached(optimizer, allocation=GlobalAllocation())
    seen = []

    def check():
        assert not pruned_weights(model, pruner).any()
        assert int(flat_masks(pruner).sum()) == round(TOTAL * (1 - pruner.sparsity_target))
        seen.append(pruner.sparsity)

    for step in range(STEPS):
        optimizer.zero_grad()
        backward(model, step)
        check()
        pruner.before_step(optimizer)
        check()
        optimizer.step()
        check()
    pruner.detach()
    check()
    assert seen == sorted(seen)
    assert seen[-1] == 0.75


def test_pruned_weights_return_and_their_gradients_and_statistics_stay():
    model, optimizer, pruner = attached(schedule=AT_ONCE)
    train(model, optimizer, pruner, steps=2)
    before = flat_masks(pruner)
    train(model, optimizer, pruner, steps=4, first=2)
    after = flat_masks(pruner)
    assert (after & ~before).any()
    assert int(after.sum()) == int(before.sum())
    for tensor in pruner.tensors:
        pruned = ~tensor.mask.kept
        assert tensor.parameter.grad[pruned].any()
        assert optimizer.state[tensor.parameter]["exp_avg"][pruned].any()


def test_masks_change_only_after_every_so_many_steps():
    model, optimizer, pruner = attached(schedule=AT_ONCE, every=4)
    masks = []
    train(model, optimizer, pruner, check=lambda: masks.append(flat_masks(pruner)))
    changes = [step for step in range(1, STEPS) if not torch.equal(masks[step], masks[step - 1])]
    assert changes == [3, 7, 11]  # 0-based: at the end of the fourth step, and so on
    assert (pruner.updates, pruner.choices) == (1, 4)


def test_a_criterion_that_reads_gradients_sees_them_unscaled():
    seen = []
    for scale in (1, 0.25):
        model, optimizer, pruner = attached(
            "sgd", gradient_scale=scale, criterion=GradientCriterion(), schedule=AT_ONCE
        )
        train(model, optimizer, pruner, steps=1)
        backward(model)
        pruner.before_step(optimizer)
        optimizer.step()
        seen.append(flat_masks(pruner))
    assert torch.equal(*seen)


def test_a_sparse_gradient_is_refused_by_name_unless_it_is_not_scaled():
    def step(scale):
        model = nn.Sequential(nn.Embedding(10, 6, sparse=True))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        straight_through = StraightThrough(gradient_scale=scale)
        pruner = Pruner(sparsity={"0": 0.5}, straight_through=straight_through, schedule=AT_ONCE)
        pruner.attach(model, optimizer, steps=2)
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.arange(10)).square().sum().backward()
            pruner.before_step(optimizer)
            optimizer.step()

    step(1.0)
    with pytest.raises(ValueError, match=r"need gradient_scale=1 .* gradient for '0.weight'"):
        step(0.5)


@pytest.mark.parametrize("scale", [0, 1.5, -1.0])
def test_a_scale_out_of_range_is_refused(scale):
    with pytest.raises(ValueError, match=r"need gradient_scale in \(0, 1\], got gradient_scale="):
        StraightThrough(gradient_scale=scale)


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"every": 3},
        {"allocation": GlobalAllocation(), "optimizer": "sgd"},
        {"pattern": NMPattern(), "sparsity": 0.5},
        {"pattern": UnstructuredPattern(per_row=True)},
        {"criterion": MovementCriterion()},
        {"criterion": TaylorCriterion(), "allocation": GlobalAllocation(), "every": 2},
        {"sparsity": None, "budget": MacsBudget(keep=0.3), "allocation": GlobalAllocation()},
        {"sparsity": None, "budget": MacsBudget(keep=0.3), "every": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("stop", [1, 4, 9, STEPS - 1])
def test_a_resume_after_any_step_equals_the_uninterrupted_run(recipe, stop, tmp_path):
    model, optimizer, pruner = attached(**recipe)
    train(model, optimizer, pruner, steps=stop)
    state = [model.state_dict(), optimizer.state_dict(), pruner.state_dict()]
    torch.save(state, tmp_path / "state.pt")
    train(model, optimizer, pruner, steps=STEPS - stop, first=stop)

    again, its_optimizer, its_pruner = start(model=Net(seed=1), **recipe)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    for part, value in zip((again, its_optimizer, its_pruner), state, strict=True):
        part.load_state_dict(value)
    its_pruner.attach(again, its_optimizer, steps=STEPS, example=EXAMPLE)
    train(again, its_optimizer, its_pruner, steps=STEPS - stop, first=stop)

    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert torch.equal(flat_masks(pruner), flat_masks(its_pruner))
    rest, its_rest = (p.state_dict()["rest"] for p in (pruner, its_pruner))
    assert all(torch.equal(rest[name], its_rest[name]) for name in rest)


def test_the_state_holds_the_pruned_values_only():
    model, optimizer, pruner = attached()
    train(model, optimizer, pruner)
    rest = pruner.state_dict()["rest"]
    assert sum(values.numel() for values in rest.values()) == TOTAL - round(TOTAL * 0.25)
    pruner.detach()
    kept = pruner.state_dict()["rest"]
    assert all(torch.equal(values, kept[name]) for name, values in rest.items())


def test_a_state_with_too_few_pruned_values_is_refused():
    model, optimizer, pruner = attached()
    train(model, optimizer, pruner)
    state = pruner.state_dict()
    state["rest"]["2.weight"] = state["rest"]["2.weight"][1:]
    with pytest.raises(ValueError, match=r"other values than those of .* for .2.weight"):
        pruner.load_state_dict(state)


def test_a_state_without_straight_through_starts_pruned_weights_at_zero():
    model, optimizer, plain = start(straight_through=None)
    plain.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, plain, steps=8)
    state = plain.state_dict()
    plain.detach(completed=False)
    _, optimizer, pruner = start(model=model)
    pruner.load_state_dict(state)
    pruner.attach(model, optimizer, steps=STEPS)
    assert not any(values.any() for values in pruner.state_dict()["rest"].values())
    train(model, optimizer, pruner, steps=STEPS - 8, first=8)
    assert pruner.sparsity == 0.75


def test_a_frozen_weight_stays_pruned_beside_weights_that_learn():
    model = Net()
    model[2].weight.requires_grad_(False)
    optimizer = OPTIMIZERS["adamw"](p for p in model.parameters() if p.requires_grad)
    pruner = Pruner(
        sparsity={"*": 0.75, "2.weight": 0.5}, straight_through=StraightThrough(), schedule=AT_ONCE
    )
    pruner.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, pruner, steps=1)
    frozen = model[2].weight.clone()
    train(model, optimizer, pruner, steps=STEPS - 1, first=1)
    assert torch.equal(frozen, model[2].weight)
    assert set(pruner.state_dict()["rest"]) == {"0.weight", "4.weight"}


def test_accumulated_gradients_are_whole():
    model, optimizer, pruner = attached("sgd", schedule=AT_ONCE, allocation=UniformAllocation())
    for step in range(0, STEPS, 2):
        optimizer.zero_grad()
        backward(model, step)
        backward(model, step + 1)
        pruner.before_step(optimizer)
        assert all(t.parameter.grad[~t.mask.kept].any() for t in pruner.tensors if step)
        optimizer.step()
        assert not pruned_weights(model, pruner).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_hold_their_zeros(dtype):
    model = nn.Linear(16, 8).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner = Pruner(sparsity=0.5, straight_through=StraightThrough(), schedule=AT_ONCE)
    pruner.attach(model, optimizer, steps=STEPS)
    for _ in range(STEPS):
        model(torch.randn(4, 16, dtype=dtype)).square().mean().backward()
        pruner.before_step(optimizer)
        optimizer.step()
        assert int((model.weight != 0).sum()) == 64
    assert next(iter(pruner.state_dict()["rest"].values())).dtype == dtype


def test_kept_weights_that_other_code_writes_between_steps_count():
    model, optimizer, pruner = attached(schedule=AT_ONCE)
    train(model, optimizer, pruner, steps=3)
    with torch.no_grad():
        for tensor in pruner.tensors:
            tensor.weights.mul_(2)
    doubled = {tensor: tensor.weights.clone() for tensor in pruner.tensors}
    backward(model)
    pruner.before_step(optimizer)
    pruner.skip_step(optimizer)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    train(model, optimizer, pruner, steps=1, first=3)
    for tensor, weights in doubled.items():
        kept = tensor.mask.kept & (weights != 0)
        assert torch.equal(tensor.weights[kept], weights[kept])


@pytest.mark.parametrize("allocation", [GlobalAllocation(), ERKAllocation()])
def test_a_budget_is_met_and_never_exceeded_again(allocation):
    model, optimizer, pruner = attached(
        sparsity=None,
        budget=MacsBudget(keep=0.3),
        allocation=allocation,
        schedule=PolynomialSchedule(begin=0, end=0.5),
    )
    costs = []
    train(model, optimizer, pruner, check=lambda: costs.append(next(iter(pruner.spending)).share))
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] <= 0.3
    assert costs[-1] > 0.29
    assert pruner.choices > pruner.updates
