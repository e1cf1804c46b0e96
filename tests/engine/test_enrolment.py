"""Layers of all kinds, that join late, freeze or share a weight."""

import pytest
import torch
from torch import nn

from lightning_prune import OneShotSchedule, Pruner, RandomCriterion, UniformAllocation
from tests.engine.training import OPTIMIZERS, STEPS, Net, pruned_weights, train


def test_a_late_layer_is_due_at_once_what_the_schedule_says():
    model = Net()
    optimizer = OPTIMIZERS["adamw"]([*model[0].parameters(), *model[4].parameters()])
    pruner = Pruner(sparsity=0.5, allocation=UniformAllocation())
    pruner.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, pruner, steps=10)
    assert list(pruner.masks) == ["0.weight", "4.weight"]
    before = pruner.masks["0.weight"].clone()
    optimizer.add_param_group({"params": model[2].parameters()})
    train(model, optimizer, pruner, steps=1)
    assert int((model[2].weight == 0).sum()) == 400
    assert torch.equal(before, pruner.masks["0.weight"])


def test_an_unfrozen_layer_joins():
    model = Net()
    model[2].requires_grad_(False)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    pruner = Pruner(sparsity=0.5, schedule=OneShotSchedule(end=0))
    pruner.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, pruner, steps=2)
    assert pruner.dense["2.weight"] == "frozen"
    model[2].requires_grad_(True)
    train(model, optimizer, pruner, steps=1)
    assert "2.weight" in pruner.masks
    assert pruner.sparsity == 0.5


def test_a_lazy_layer_is_pruned_once_it_has_a_shape():
    model = nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 4))
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner(sparsity=0.5, schedule=OneShotSchedule(end=0))
    pruner.attach(model, optimizer, steps=1)
    model(torch.randn(2, 6)).sum().backward()
    pruner.before_step(optimizer)
    optimizer.step()
    assert list(pruner.masks) == ["0.weight", "1.weight"]
    assert pruner.sparsity == 0.5


def test_a_layer_that_is_frozen_later_keeps_its_mask():
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner(
        sparsity=0.5,
        schedule=OneShotSchedule(end=0),
        allocation=UniformAllocation(),
        criterion=RandomCriterion(),
    )
    pruner.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, pruner, steps=1)
    before = {name: mask.clone() for name, mask in pruner.masks.items()}
    for frozen in (True, False):
        model[2].requires_grad_(not frozen)
        train(model, optimizer, pruner, steps=1)
        assert list(pruner.masks) == list(before)
        assert all(torch.equal(pruner.masks[name], before[name]) for name in before)
    assert int((model[2].weight == 0).sum()) == 400


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_are_pruned(kind):
    model = kind(6, 5)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    pruner = Pruner(sparsity=0.8)
    pruner.attach(model, optimizer, steps=3)
    for _ in range(3):
        model(torch.randn(4, 2, 6))[0].sum().backward()
        pruner.before_step(optimizer)
        optimizer.step()
    pruner.detach()
    total = sum(tensor.total for tensor in pruner.tensors)
    assert sum(int((t.parameter == 0).sum()) for t in pruner.tensors) == total - round(total * 0.2)


def test_attention_is_pruned_also_in_the_fast_path_of_eval():
    model = nn.MultiheadAttention(8, 2, batch_first=True)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    pruner = Pruner(sparsity=0.5)
    pruner.attach(model, optimizer, steps=3)
    x = torch.randn(2, 5, 8)
    for _ in range(3):
        model(x, x, x)[0].square().sum().backward()
        pruner.before_step(optimizer)
        optimizer.step()
    assert not pruned_weights(model, pruner).any()
    assert pruner.sparsity == 0.5
    slow = model(x, x, x)[0]
    with torch.no_grad():
        fast = model.eval()(x, x, x, need_weights=False)[0]
    assert torch.allclose(fast, slow, atol=1e-6)


def test_tied_weights_are_pruned_once():
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.ReLU(), nn.Linear(6, 6, bias=False))
    model[2].weight = model[0].weight
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner(sparsity=0.5, schedule=OneShotSchedule(end=0))
    pruner.attach(model, optimizer, steps=1)
    model(torch.randn(2, 6)).sum().backward()
    pruner.before_step(optimizer)
    assert int((model[2].weight == 0).sum()) == 18
