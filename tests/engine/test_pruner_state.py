"""What a Pruner keeps, and goes on from."""

import math

import pytest
import torch
from torch import nn

from lightning_prune import (
    Criterion,
    MagnitudeCriterion,
    OneShotSchedule,
    PolynomialSchedule,
    Pruner,
    RandomCriterion,
)
from tests.conftest import answers
from tests.engine.training import OPTIMIZERS, STEPS, TOTAL, Net, train


@pytest.mark.parametrize("every", [None, 0.2])
@pytest.mark.parametrize("criterion", answers(Criterion))
def test_a_resumed_run_equals_the_uninterrupted_one(criterion, every, tmp_path):
    def start(model):
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        schedule = PolynomialSchedule(every=every)
        return model, optimizer, Pruner(sparsity=0.9, schedule=schedule, criterion=criterion())

    model, optimizer, pruner = start(Net())
    pruner.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, pruner, steps=5)
    state = [model.state_dict(), optimizer.state_dict(), pruner.state_dict()]
    torch.save(state, tmp_path / "state.pt")
    reached = (pruner.sparsity, pruner.sparsity_target)
    train(model, optimizer, pruner, steps=STEPS - 5, first=5)

    again, its_optimizer, its_pruner = start(Net(seed=1))
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    for part, value in zip((again, its_optimizer, its_pruner), state, strict=True):
        part.load_state_dict(value)
    its_pruner.attach(again, its_optimizer, steps=STEPS)
    assert its_pruner.sparsity == reached[0]
    assert its_pruner.sparsity_target == reached[1] > 0
    train(again, its_optimizer, its_pruner, steps=STEPS - 5, first=5)

    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    for name, mask in pruner.masks.items():
        assert torch.equal(mask, its_pruner.masks[name])
    one, other = optimizer.state_dict()["state"], its_optimizer.state_dict()["state"]
    assert all(torch.equal(one[i][k], other[i][k]) for i in one for k in one[i])
    gathered, its_gathered = (p.state_dict()["observed"] for p in (pruner, its_pruner))
    for name, values in gathered.items():
        assert values.keys() == its_gathered[name].keys()
        assert all(torch.equal(values[key], its_gathered[name][key]) for key in values)


def test_a_mask_takes_one_bit_an_entry_in_the_state():
    model = Net()
    pruner = Pruner()
    pruner.attach(model, OPTIMIZERS["sgd"](model.parameters()), steps=STEPS)
    for name, mask in pruner.masks.items():
        packed = pruner.state_dict()["masks"][name]
        assert packed.dtype == torch.uint8
        assert packed.numel() == math.ceil(mask.numel() / 8)


def test_a_higher_target_goes_on_from_the_present_masks():
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    first = Pruner(sparsity=0.5, schedule=OneShotSchedule(end=0))
    first.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, first)
    first.detach()
    second = Pruner(sparsity=0.8, schedule=OneShotSchedule(end=0))
    second.load_state_dict(first.state_dict())
    second.attach(model, optimizer, steps=STEPS)
    assert second.sparsity == 0.5
    train(model, optimizer, second, steps=1)
    assert second.sparsity == pytest.approx(0.8, abs=1 / TOTAL)
    for name, mask in first.masks.items():
        assert not (second.masks[name] & ~mask).any()


class InPlace(MagnitudeCriterion):
    """Counts observations in the tensor that it was given."""

    def observe(self, tensor, state):
        return {"seen": state["seen"].add_(1)} if state else {"seen": torch.ones((), device="cpu")}


def test_a_state_is_not_changed_by_the_pruner_that_was_given_it():
    def start(state=None):
        model = Net()
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        pruner = Pruner(criterion=InPlace())
        if state:
            pruner.load_state_dict(state)
        pruner.attach(model, optimizer, steps=STEPS)
        train(model, optimizer, pruner, steps=1)
        return pruner.state_dict()

    first = start()
    assert start(first)["observed"]["0.weight"]["seen"] == 2
    assert first["observed"]["0.weight"]["seen"] == 1


def test_masks_of_another_model_are_refused_with_the_differences():
    pruner = Pruner()
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    pruner.attach(model, OPTIMIZERS["sgd"](model.parameters()), steps=1)
    other = nn.Sequential(nn.Linear(5, 4))
    foreign = Pruner()
    foreign.load_state_dict(pruner.state_dict())
    with pytest.raises(
        ValueError, match=r"'0.weight' is \[4, 4\] in the state and \[4, 5\].*absent"
    ):
        foreign.attach(other, OPTIMIZERS["sgd"](other.parameters()), steps=1)
    with pytest.raises(ValueError, match="need the state of a Pruner"):
        foreign.load_state_dict({"masks": {}})


def test_masks_of_a_layer_that_is_frozen_at_the_resume_are_not_lost():
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    first = Pruner(sparsity=0.5, schedule=OneShotSchedule(end=0))
    first.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, first, steps=1)
    first.detach()
    model[2].requires_grad_(False)
    second = Pruner(sparsity=0.5, schedule=OneShotSchedule(end=0))
    second.load_state_dict(first.state_dict())
    second.attach(model, optimizer, steps=STEPS)
    assert set(second.state_dict()["masks"]) == set(first.masks)
    second.detach(completed=False)
    assert set(second.state_dict()["masks"]) == set(first.masks)


def test_masks_of_a_lazy_layer_are_restored_once_it_has_a_shape():
    def start():
        model = nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 4))
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        pruner = Pruner(sparsity=0.5, schedule=OneShotSchedule(end=0), criterion=RandomCriterion())
        return model, optimizer, pruner

    def step(model, optimizer, pruner):
        model(torch.randn(2, 6)).sum().backward()
        pruner.before_step(optimizer)
        optimizer.step()

    model, optimizer, pruner = start()
    pruner.attach(model, optimizer, steps=2)
    step(model, optimizer, pruner)
    again, its_optimizer, its_pruner = start()
    its_pruner.load_state_dict(pruner.state_dict())
    its_pruner.attach(again, its_optimizer, steps=2)
    step(again, its_optimizer, its_pruner)
    for name, mask in pruner.masks.items():
        assert torch.equal(mask, its_pruner.masks[name])


def prune_further(model, sparsity, state=None):
    """Prune for some steps from a state, and return the next state."""
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    pruner = Pruner(sparsity=sparsity, schedule=OneShotSchedule(end=0))
    if state is not None:
        pruner.load_state_dict(state)
    pruner.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, pruner, steps=2)
    pruner.detach()
    return pruner.state_dict()


def test_the_mask_of_a_tensor_that_a_resumed_run_leaves_dense_does_not_come_back():
    model = Net()
    first = prune_further(model, 0.75)
    second = prune_further(model, {"*": 0.75, "2": None}, first)
    assert list(second["masks"]) == list(second["shapes"]) == ["0.weight", "4.weight"]
    learnt = model[2].weight.detach().clone()
    assert learnt.all()
    third = prune_further(model, {"*": 0.75, "2": 0.0}, second)
    assert list(third["masks"]) == ["0.weight", "2.weight", "4.weight"]
    assert model[2].weight.all()


def test_a_layer_that_replaces_a_frozen_layer_does_not_get_the_mask_of_that_layer():
    model = Net()
    state = prune_further(model, 0.5)
    model[2].requires_grad_(False)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner(sparsity={"*": 0.5, "2": 0.0}, schedule=OneShotSchedule(end=0))
    pruner.load_state_dict(state)
    pruner.attach(model, optimizer, steps=STEPS)
    assert "2.weight" in pruner.state_dict()["masks"]
    model[2] = nn.Linear(40, 20, bias=False)
    optimizer.add_param_group({"params": model[2].parameters()})
    train(model, optimizer, pruner, steps=1)
    assert pruner.masks["2.weight"].all()
    assert model[2].weight.all()
