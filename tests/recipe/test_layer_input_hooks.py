"""Hooks that watch the inputs of layers: when they come, and when they go."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from lightning_prune import (
    MultiStepSchedule,
    OneShotSchedule,
    Pruner,
    WandaCriterion,
)
from tests.commands import run_python
from tests.hooks import hooks, registered
from tests.recipe.watched import attached, squares, step


def test_what_has_been_seen_is_forgotten_at_an_update():
    model = nn.Linear(3, 2)
    schedule = MultiStepSchedule(milestones=(0.25, 1.0))
    optimizer, pruner = attached(model, schedule=schedule)
    batches = torch.randn(3, 4, 3)
    for x in batches:
        step(model, optimizer, pruner, x)
    assert torch.allclose(squares(pruner), batches[2].square().sum(0))


@pytest.mark.filterwarnings("ignore:weights are 0 and no mask says why")
def test_hooks_are_there_while_updates_are_to_come():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer, pruner = attached(model, steps=3, end=2, unit="step")
    for left in (2, 2, 0):
        assert len(hooks(model)) == 2
        step(model, optimizer, pruner, torch.randn(3, 4))
        assert len(hooks(model)) == left
    assert pruner.state_dict()["observed"] == {"0.weight": {}, "1.weight": {}}
    assert not registered(model)
    pruner.detach()
    pruner.attach(model, optimizer, steps=3)
    assert len(hooks(model)) == 2
    pruner.detach(completed=False)
    assert not hooks(model)


def test_hooks_leave_a_layer_that_is_replaced():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    old = model[1]
    optimizer, pruner = attached(model)
    step(model, optimizer, pruner, torch.randn(3, 4))
    model[1] = nn.Linear(4, 4)
    replaced = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner.follow([replaced])
    assert not hooks(old)
    assert len(hooks(model)) == 2


def test_a_refused_attach_leaves_no_hooks():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    nn.init.zeros_(model[1].weight)
    with pytest.raises(ValueError, match="keep_zeros=True, got none in"):
        attached(model, keep_zeros=True)
    assert not hooks(model)


def test_copies_of_the_model_work_and_are_not_watched():
    model = nn.Sequential(nn.Linear(4, 3))
    optimizer, pruner = attached(model)
    x = torch.randn(2, 4)
    step(model, optimizer, pruner, x)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
        copy.deepcopy(copy.deepcopy(model)),
    ]
    for again in copies:
        assert torch.equal(again(x), model.eval()(x))
        again(x).sum().backward()
    model.train()
    step(model, optimizer, pruner, x)
    assert torch.allclose(squares(pruner), 2 * x.square().sum(0))


@pytest.mark.slow
def test_a_pickled_model_loads_without_this_package(tmp_path):
    model = nn.Sequential(nn.Linear(4, 3))
    attached(model)
    torch.save(model, tmp_path / "model.pt")
    code = (
        "import sys, torch\n"
        f"model = torch.load({str(tmp_path / 'model.pt')!r}, weights_only=False)\n"
        "model(torch.ones(1, 4)).sum().backward()\n"
        "assert 'lightning_prune' not in sys.modules"
    )
    run_python("-c", code, folder=tmp_path)


def test_a_layer_that_joins_before_the_first_update_is_seen_in_time():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].requires_grad_(False)
    optimizer, pruner = attached(model, steps=3)
    step(model, optimizer, pruner, torch.randn(2, 4))
    model[1].requires_grad_(True)
    step(model, optimizer, pruner, torch.randn(2, 4))
    step(model, optimizer, pruner, torch.randn(2, 4))
    assert pruner.sparsity == 0.5


def test_a_layer_that_joins_puts_no_hooks_where_all_is_done():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[2].requires_grad_(False)
    first, rest = (torch.optim.SGD(part.parameters(), lr=0.1) for part in (model[0], model[1:]))
    schedule = OneShotSchedule(end=1, unit="step")
    pruner = Pruner(sparsity=0.5, schedule=schedule, criterion=WandaCriterion())
    pruner.attach(model, [first, rest], steps=9)
    for _ in range(2):
        step(model, first, pruner, torch.randn(2, 4))
    model[2].requires_grad_(True)
    step(model, rest, pruner, torch.randn(2, 4))
    assert len(hooks(model)) == len(hooks(model[1:])) == 2
