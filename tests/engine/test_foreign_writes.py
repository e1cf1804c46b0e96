"""What others write into weights, gradients and statistics revives nothing that is pruned."""

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from lightning_prune import OneShotSchedule, Pruner
from tests.engine.zero_keeping import (
    AT_ONCE,
    STEPS,
    assert_zeros,
    backward,
    make_model,
    pruned_at_once,
    train,
)


def add(weights):
    weights.add_(0.5)


def add_foreach(weights):
    torch._foreach_add_([weights], 0.5)


def overwrite(weights):
    weights.copy_(torch.ones_like(weights))


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("write", [add, add_foreach, overwrite])
@pytest.mark.parametrize("fused", [False, True])
def test_what_others_write_into_weights_is_gone_after_the_next_step(fused, write, guard):
    model, optimizer, pruner = pruned_at_once(lr=0.1, momentum=0.9, fused=fused)
    with guard():
        write(model[0].weight)
    train(model, optimizer, pruner, first=3)
    assert_zeros(pruner)
    train(model, optimizer, pruner, first=4)
    assert_zeros(pruner)


@pytest.mark.parametrize("fused", [False, True])
def test_dense_weights_that_are_loaded_are_pruned_after_the_next_step(fused):
    model, optimizer, pruner = pruned_at_once(lr=0.1, momentum=0.9, fused=fused)
    model.load_state_dict(make_model().state_dict())
    train(model, optimizer, pruner, first=3)
    assert_zeros(pruner)


@pytest.mark.parametrize("fused", [False, True])
def test_what_is_written_into_weights_between_before_step_and_the_step_is_gone_after_it(fused):
    model, optimizer, pruner = pruned_at_once(lr=0.1, momentum=0.9, fused=fused)
    backward(model, optimizer, 3)
    pruner.before_step(optimizer)
    with torch.no_grad():
        model[0].weight.add_(0.5)
    optimizer.step()
    assert_zeros(pruner)


@pytest.mark.parametrize("when", ["pre", "post"])
def test_what_an_earlier_hook_of_the_optimizer_writes_into_weights_is_gone_after_the_step(when):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def write(*_):
        with torch.no_grad():
            model[0].weight.add_(0.5)

    getattr(optimizer, f"register_step_{when}_hook")(write)
    pruner = Pruner(sparsity=0.5, schedule=AT_ONCE)
    pruner.attach(model, optimizer, steps=STEPS)
    for step in range(4):
        train(model, optimizer, pruner, first=step)
        assert_zeros(pruner)


def in_place(gradients):
    for gradient in gradients:
        gradient.add_(1.0)


def at_once(gradients):
    torch._foreach_add_(gradients, 1.0)


@pytest.mark.parametrize("noisy", [{3}, set(range(3, 8))], ids=["once", "always"])
@pytest.mark.parametrize("write", [in_place, at_once])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_noise_that_is_added_to_masked_gradients_revives_nothing(kind, write, noisy):
    """Also when it ends: what momentum has gathered of it goes on to move weights."""
    options = {} if kind is torch.optim.AdamW else {"momentum": 0.9}
    model, optimizer, pruner = pruned_at_once(kind, lr=0.01, weight_decay=0.1, **options)
    for step in range(3, 8):
        backward(model, optimizer, step)
        pruner.before_step(optimizer)
        if step in noisy:
            write([parameter.grad for parameter in model.parameters()])
        optimizer.step()
        assert_zeros(pruner)


@pytest.mark.parametrize("later", [0, 3], ids=["at once", "later"])
def test_gradients_that_are_replaced_after_before_step_revive_nothing(later):
    model, optimizer, pruner = pruned_at_once()
    backward(model, optimizer, 3)
    pruner.before_step(optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert_zeros(pruner)
    for step in range(4, 4 + later):
        train(model, optimizer, pruner, first=step)
        assert_zeros(pruner)


def test_a_norm_of_nan_that_clipping_spreads_revives_nothing():
    model, optimizer, pruner = pruned_at_once()
    backward(model, optimizer, 3)
    model[0].bias.grad.fill_(torch.nan)
    pruner.before_step(optimizer)
    clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    assert_zeros(pruner)
    for step in range(4, 7):
        train(model, optimizer, pruner, first=step)
        assert_zeros(pruner)


def test_clipped_gradients_keep_zeros():
    model, optimizer, pruner = pruned_at_once(torch.optim.AdamW, lr=0.01)
    for step in range(3, 7):
        backward(model, optimizer, step)
        pruner.before_step(optimizer)
        clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()
        assert_zeros(pruner)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_dense_statistics_that_are_loaded_revive_nothing(kind, fused):
    options = {"lr": 0.01, "fused": fused}
    options |= {"momentum": 0.9} if kind is torch.optim.SGD else {"amsgrad": True}
    dense = make_model()
    other = kind(dense.parameters(), **options)
    backward(dense, other)
    other.step()
    model, optimizer, pruner = pruned_at_once(kind, **options)
    optimizer.load_state_dict(other.state_dict())
    for step in range(3, 7):
        train(model, optimizer, pruner, first=step)
        assert_zeros(pruner)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_momentum_from_before_revives_no_zeros_that_are_kept(kind):
    model = make_model()
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind(model.parameters(), lr=0.01, **options)
    backward(model, optimizer)
    optimizer.step()
    with torch.no_grad():
        model[0].weight[:, :4] = 0
    schedule = OneShotSchedule(end=STEPS, unit="step")
    pruner = Pruner(sparsity=0.9, schedule=schedule, keep_zeros=True)
    pruner.attach(model, optimizer, steps=STEPS)
    for step in range(5):
        train(model, optimizer, pruner, first=step)
        assert_zeros(pruner)
        assert not model[0].weight[:, :4].any()


@pytest.mark.parametrize("fused", [False, True])
def test_two_optimizers_that_share_a_weight_keep_its_zeros(fused):
    model = make_model()
    both = [
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=fused),
        torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused),
    ]
    for optimizer in both:  # both have momentum
        backward(model, optimizer)
        optimizer.step()
    pruner = Pruner(sparsity=0.5, schedule=OneShotSchedule(end=2, unit="step"))
    pruner.attach(model, both, steps=STEPS)
    for turn in [0, 1, 0, 1, 0, 1, 1, 0, 0, 1, 0, 1]:
        train(model, both[turn], pruner)
        if pruner.sparsity:
            assert_zeros(pruner)
    assert pruner.sparsity


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.Adagrad(p, lr=0.1),
        lambda p: torch.optim.SparseAdam(p, lr=0.1),
    ],
    ids=["SGD", "Adagrad", "SparseAdam"],
)
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_sparse_gradients_keep_zeros(make):
    model = nn.Sequential(nn.Embedding(10, 6, sparse=True))
    optimizer = make(list(model.parameters()))
    pruner = Pruner(sparsity={"0": 0.5}, schedule=AT_ONCE)
    pruner.attach(model, optimizer, steps=STEPS)
    for step in range(5):
        optimizer.zero_grad()
        model(torch.tensor([step, step + 1, 3])).sum().backward()
        assert model[0].weight.grad.is_sparse
        pruner.before_step(optimizer)
        optimizer.step()
        assert_zeros(pruner)


def test_a_layer_without_gradients_rests_and_keeps_zeros():
    model, optimizer, pruner = pruned_at_once()
    for step in range(3, 7):
        backward(model, optimizer, step)
        if step != 4:
            model[2].weight.grad = None
        pruner.before_step(optimizer)
        optimizer.step()
        assert_zeros(pruner)
