"""Any recipe lands exactly and holds its zeros."""

import math

import pytest
import torch
from torch import nn

from lightning_prune import (
    NMPattern,
    OneShotSchedule,
    PolynomialSchedule,
    Pruner,
)
from tests.engine.training import OPTIMIZERS, STEPS, TOTAL, Net, pruned_weights, train
from tests.hooks import hooks


def test_the_last_planned_step_serves_an_end_of_one():
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner(sparsity=0.9, schedule=PolynomialSchedule(begin=0, end=1))
    pruner.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, pruner, steps=STEPS - 1)
    assert pruner.sparsity < 0.9
    train(model, optimizer, pruner, steps=1)
    assert pruner.sparsity == 1 - round(TOTAL * 0.1) / TOTAL


def test_steps_and_epochs_are_counted_too():
    for schedule in (
        OneShotSchedule(end=4, unit="step"),
        OneShotSchedule(end=2, unit="epoch"),
    ):
        model = Net()
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        pruner = Pruner(sparsity=0.5, schedule=schedule)
        pruner.attach(model, optimizer, steps_per_epoch=2)
        sparsities = []
        train(
            model, optimizer, pruner, 6, check=lambda p=pruner, s=sparsities: s.append(p.sparsity)
        )
        assert sparsities == [0, 0, 0, 0, 0.5, 0.5]


def test_gradients_of_pruned_weights_are_zero_when_the_caller_clips():
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner(sparsity=0.9, schedule=OneShotSchedule(end=0))
    pruner.attach(model, optimizer, steps=1)
    model(torch.randn(8, 4, 8)).square().mean().backward()
    pruner.before_step(optimizer)
    for tensor in pruner.tensors:
        assert not tensor.parameter.grad[~tensor.mask.kept].any()
        assert tensor.parameter.grad[tensor.mask.kept].any()


def test_a_glob_of_its_own_fixes_a_tensor_exactly():
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner(sparsity={"*": 0.8, "2": 0.5})
    pruner.attach(model, optimizer, steps=STEPS)
    assert pruner.plan["2.weight"] == 0.5
    train(model, optimizer, pruner)
    assert int((model[2].weight == 0).sum()) == 400
    rest = pruner.tensors[0].kept + pruner.tensors[2].kept
    assert rest == round((TOTAL - 800) * (1 - 0.8))


def test_the_plan_of_erk_is_what_happens():
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner(sparsity=0.9)
    pruner.attach(model, optimizer, steps=STEPS)
    plan = pruner.plan
    train(model, optimizer, pruner)
    assert plan == {t.name: 1 - t.kept / t.total for t in pruner.tensors}


def test_a_tensor_keeps_one_atom_unless_its_sparsity_is_one():
    for sparsity, kept in ((0.9999, 1), (1.0, 0)):
        model = nn.Linear(10, 10)
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        pruner = Pruner(sparsity=sparsity, schedule=OneShotSchedule(end=0))
        pruner.attach(model, optimizer, steps=1)
        model(torch.randn(2, 10)).sum().backward()
        pruner.before_step(optimizer)
        assert pruner.tensors[0].kept == kept


def test_sparsity_zero_changes_nothing():
    dense, pruned = Net(), Net()
    for model, sparsity in ((dense, None), (pruned, 0.0)):
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        pruner = Pruner(sparsity={"*": sparsity, "0": sparsity})
        if sparsity is None:
            pruner = Pruner(sparsity=0.0, schedule=OneShotSchedule(end=1))
        pruner.attach(model, optimizer, steps=STEPS)
        state = torch.get_rng_state()
        train(model, optimizer, pruner)
        assert torch.equal(torch.get_rng_state(), state)
    assert all(
        torch.equal(a, b) for a, b in zip(dense.parameters(), pruned.parameters(), strict=True)
    )


def test_zeros_at_the_start_can_be_kept():
    model = Net()
    model[2].weight.detach()[:10] = 0
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner(sparsity=0.0, keep_zeros=True)
    pruner.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, pruner)
    assert not model[2].weight[:10].any()
    pruner.detach()
    nn.init.zeros_(model[2].weight)
    with pytest.raises(ValueError, match=r"keep_zeros=True, got none in '2\.weight'"):
        pruner.attach(model, optimizer, steps=STEPS)


def test_each_optimizer_counts_its_own_steps():
    model = Net()
    one, other = (OPTIMIZERS["sgd"](model[i].parameters()) for i in (0, 2))
    pruner = Pruner(sparsity=0.5, schedule=OneShotSchedule(end=2, unit="step"))
    pruner.attach(model, [one, other])
    for _ in range(3):
        train(model, one, pruner, steps=1)
    train(model, other, pruner, steps=1)
    assert int((model[0].weight == 0).sum()) == 64
    assert not (model[2].weight == 0).any()
    assert pruner.state_dict()["steps"] == [3, 1]


def test_lbfgs_inner_evaluations_count_as_one_step():
    model = Net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    pruner = Pruner(sparsity=0.5, schedule=OneShotSchedule(end=1, unit="step"))
    pruner.attach(model, optimizer)
    x = torch.randn(8, 4, 8)

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        pruner.before_step(optimizer)
        return loss

    optimizer.step(closure)
    assert pruner.sparsity == 0
    optimizer.step(closure)
    assert pruner.sparsity == 0.5
    assert not pruned_weights(model, pruner).any()
    assert pruner.state_dict()["steps"] == [2]


def test_lbfgs_forgets_the_directions_of_pruned_weights():
    model = Net()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)
    optimizer.step(lambda: backward(model, optimizer))
    (state,) = optimizer.state.values()
    assert state["n_iter"] > 0
    pruner = Pruner(sparsity=0.5)
    pruner.attach(model, optimizer, steps=4)
    pruner.mask(optimizer)
    assert state["n_iter"] == 0  # then the next step begins without directions


def backward(model, optimizer):
    optimizer.zero_grad()
    loss = model(torch.randn(8, 4, 8)).square().mean()
    loss.backward()
    return loss


def test_nothing_is_left_behind_but_positive_zeros():
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    before = list(model.state_dict())
    pruner = Pruner(sparsity=0.9)
    pruner.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, pruner)
    pruner.detach()
    assert not hooks(optimizer, model)
    assert list(model.state_dict()) == before
    assert not torch.signbit(pruned_weights(model, pruner)).any()


def test_a_foreign_hand_in_pruned_weights_is_found_at_the_end():
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner(sparsity=0.9)
    pruner.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, pruner)
    model[2].weight.detach().fill_(1.0)
    with pytest.raises(RuntimeError, match=r"others in '2\.weight'"):
        pruner.detach()
    assert not pruned_weights(model, pruner).any()


def test_stopping_before_the_end_warns_with_the_numbers():
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner(sparsity=0.9)
    pruner.attach(model, optimizer, steps=100)
    train(model, optimizer, pruner, steps=50)
    with pytest.warns(UserWarning, match=rf"reached sparsity {pruner.sparsity:.4f} of 0.9000"):
        pruner.detach()


@pytest.mark.parametrize("zeros", [0.3, 0.5, 0.6])
def test_nm_is_reached_also_from_zeros_that_were_anywhere(zeros):
    model = Net()
    for layer in (model[0], model[2], model[4]):
        layer.weight.detach()[torch.rand(layer.weight.shape) < zeros] = 0
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner(sparsity=0.5, pattern=NMPattern(n=2, m=4), keep_zeros=True)
    pruner.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, pruner)
    for mask in pruner.masks.values():
        assert (mask.movedim(1, -1).reshape(-1, 4).sum(1) <= 2).all()


def test_zeros_hold_where_two_optimizers_share_a_weight():
    model = Net()
    both = [OPTIMIZERS["sgd"](model.parameters()) for _ in range(2)]
    pruner = Pruner(sparsity=0.5, schedule=OneShotSchedule(end=0))
    pruner.attach(model, both, steps=STEPS)
    for optimizer in (*both, *both):
        train(model, optimizer, pruner, steps=1)
        assert not pruned_weights(model, pruner).any()


def test_zeros_hold_under_infinite_gradients():
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner(sparsity=0.5, schedule=OneShotSchedule(end=0))
    pruner.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, pruner, steps=1)
    model[2].weight.grad.fill_(math.inf)
    pruner.before_step(optimizer)
    optimizer.step()
    assert not pruned_weights(model, pruner).any()


def move(model, device):
    """Move a model to another device as between a CPU and a GPU: the parameters stay objects."""
    parameters = list(model.parameters())
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.zero_grad()
        model.to_empty(device=device)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swaps)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))


def test_masks_are_where_their_parameters_are_and_are_not_lost_where_there_is_no_data():
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner(sparsity=0.5, schedule=OneShotSchedule(end=0))
    pruner.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, pruner)
    pruner.detach()
    masks, state = pruner.masks, pruner.state_dict()
    move(model, "meta")
    assert {mask.device.type for mask in pruner.masks.values()} == {"meta"}
    for name, bits in pruner.state_dict()["masks"].items():
        assert torch.equal(bits, state["masks"][name])
    move(model, "cpu")
    for name, mask in pruner.masks.items():
        assert torch.equal(mask, masks[name])
