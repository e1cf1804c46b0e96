"""A call that raises leaves the object, the model and the optimizer as they were."""

import copy
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from lightning_prune import (
    Allocation,
    BlockPattern,
    ChannelPattern,
    Criterion,
    NMPattern,
    OneShotSchedule,
    PolynomialSchedule,
    Pruner,
    RandomCriterion,
    Regrow,
    UniformAllocation,
    UnstructuredPattern,
    WandaCriterion,
)
from tests.engine.training import EXAMPLE, OPTIMIZERS, Net, train
from tests.hooks import hooks

RAMP = PolynomialSchedule(begin=0, end=6, every=1, unit="step", initial=0.3)


class PlannedError(Exception):
    """Raised by a fuse."""


class Fuse:
    """Raises at a call of a given number; never, if that is None."""

    def __init__(self):
        self.calls, self.at = 0, None

    def __call__(self):
        self.calls += 1
        if self.calls == self.at:
            raise PlannedError


@dataclass(frozen=True, kw_only=True)
class FusedCriterion(Criterion):
    """Magnitude that can fail wherever the engine calls it."""

    fuse: Fuse = field(default_factory=Fuse, compare=False)

    def check_tensor(self, tensor, model):
        self.fuse()

    def watch(self, tensor):
        self.fuse()
        return (tensor.owner.register_forward_pre_hook(lambda module, inputs: None),)

    def observe(self, tensor, state):
        self.fuse()
        return {"count": state.get("count", torch.zeros((), device="cpu")) + 1}

    def score(self, tensor, state):
        self.fuse()
        return tensor.weights.abs()


@dataclass(frozen=True, kw_only=True)
class FusedAllocation(Allocation):
    """Uniform that can fail."""

    shares_budget = False
    fuse: Fuse = field(default_factory=Fuse, compare=False)

    def __call__(self, atoms, due):
        self.fuse()
        return UniformAllocation()(atoms, due)


def fused(kind, fuse):
    """Return a pattern that can fail wherever the engine calls it."""

    class FusedPattern(kind):
        def check_shape(self, shape):
            fuse()
            super().check_shape(shape)

        def bounds(self, scores, alive, due):
            fuse()
            return super().bounds(scores, alive, due)

        def __call__(self, scores, keep):
            fuse()
            return super().__call__(scores, keep)

        def is_satisfied(self, alive, due):
            fuse()
            return super().is_satisfied(alive, due)

    return FusedPattern()


def by_rows():
    return UnstructuredPattern(per_row=True)


def snapshot(pruner, model, optimizer):
    """Return all that a failed call must leave alone."""
    state = pruner.state_dict() if pruner.tensors else {}
    return copy.deepcopy(
        {
            "state": state,
            "weights": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "hooks": sorted(map(str, hooks(model, optimizer))),
            "counts": [pruner.updates, pruner.changed, pruner.sparsity, pruner.sparsity_target],
            "kept": [(t.name, t.kept, t.optimizer, t.step) for t in pruner.tensors],
        }
    )


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


RECIPES = {
    "weights": lambda fuse: {"pattern": UnstructuredPattern()},
    "rows": lambda fuse: {"pattern": by_rows()},
    "N:M": lambda fuse: {"pattern": fused(NMPattern, fuse)},
    "blocks": lambda fuse: {"pattern": fused(BlockPattern, fuse)},
    "channels": lambda fuse: {"pattern": fused(ChannelPattern, fuse)},
    "regrowth": lambda fuse: {
        "pattern": fused(BlockPattern, fuse),
        "regrow": Regrow(
            criterion=RandomCriterion(),
            first=None,
            schedule=PolynomialSchedule(begin=0, end=6, every=1, unit="step", initial=0.1),
        ),
    },
}


def make(name, fuse):
    return Pruner(
        sparsity=0.75,
        schedule=RAMP,
        criterion=FusedCriterion(fuse=fuse),
        allocation=FusedAllocation(fuse=fuse),
        **RECIPES[name](fuse),
    )


def model_and_optimizer():
    model = Net()
    return model, OPTIMIZERS["adamw"](model.parameters())


@pytest.mark.parametrize("name", RECIPES)
def test_a_failed_attach_leaves_all_as_it_was_and_the_next_one_restores(name, traced_once):
    def saved():
        fuse = Fuse()
        model, optimizer = model_and_optimizer()
        pruner = make(name, fuse)
        pruner.attach(model, optimizer, example=EXAMPLE)
        train(model, optimizer, pruner, steps=3)
        state, reached = pruner.state_dict(), pruner.sparsity
        pruner.detach(completed=False)
        return state, reached

    state, reached = saved()
    fuse = Fuse()
    model, optimizer = model_and_optimizer()
    pruner = make(name, fuse)
    pruner.load_state_dict(state)
    fuse.calls = 0
    at = 1
    while True:
        before = snapshot(pruner, model, optimizer)
        fuse.calls, fuse.at = 0, at
        try:
            pruner.attach(model, optimizer, example=EXAMPLE)
        except PlannedError:
            assert same(snapshot(pruner, model, optimizer), before), f"call {at}"
            at += 1
        else:
            break
    assert at > 3  # it has failed in several places
    assert pruner.sparsity == reached
    assert pruner.steps == [3]
    pruner.detach(completed=False)


@pytest.mark.parametrize("name", RECIPES)
def test_a_failed_step_leaves_all_as_it_was_and_is_made_up_for(name, traced_once):
    fuse = Fuse()
    model, optimizer = model_and_optimizer()
    pruner = make(name, fuse)
    pruner.attach(model, optimizer, example=EXAMPLE)
    train(model, optimizer, pruner, steps=2)
    twin_model, twin_optimizer = model_and_optimizer()
    twin = make(name, Fuse())
    twin.attach(twin_model, twin_optimizer, example=EXAMPLE)
    train(twin_model, twin_optimizer, twin, steps=3)

    x = torch.randn(8, 4, 8, generator=torch.Generator().manual_seed(2))
    optimizer.zero_grad()
    model(x).square().mean().backward()
    before, at = snapshot(pruner, model, optimizer), 1
    while True:
        fuse.calls, fuse.at = 0, at
        try:
            pruner.before_step(optimizer)
        except PlannedError:
            assert same(snapshot(pruner, model, optimizer), before), f"call {at}"
            at += 1
        else:
            break
    optimizer.step()
    assert at > 3
    assert same(pruner.state_dict()["masks"], twin.state_dict()["masks"])
    assert same(model.state_dict(), twin_model.state_dict())
    pruner.detach(completed=False)
    twin.detach(completed=False)


def test_optimizers_that_cannot_be_followed_leave_all_as_it_was():
    fuse = Fuse()
    model, optimizer = model_and_optimizer()
    pruner = make("weights", fuse)
    pruner.attach(model, optimizer)
    train(model, optimizer, pruner, steps=2)
    other = OPTIMIZERS["sgd"](model.parameters())
    before, at = snapshot(pruner, model, optimizer), 1
    while True:
        fuse.calls, fuse.at = 0, at
        try:
            pruner.follow([other])
        except PlannedError:
            assert same(snapshot(pruner, model, optimizer), before), f"call {at}"
            at += 1
        else:
            break
    assert at > 2
    fuse.at = None
    train(model, other, pruner, steps=2, first=2)
    assert pruner.steps == [4]
    pruner.detach(completed=False)


def test_a_tensor_that_cannot_join_leaves_all_as_it_was():
    fuse = Fuse()
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    pruner = make("weights", fuse)
    pruner.attach(model, optimizer)
    model[1].requires_grad_(True)
    optimizer.add_param_group({"params": list(model[1].parameters())})
    model(torch.randn(2, 8)).square().sum().backward()
    before, at = snapshot(pruner, model, optimizer), 1
    while True:
        fuse.calls, fuse.at = 0, at
        try:
            pruner.before_step(optimizer)
        except PlannedError:
            after = snapshot(pruner, model, optimizer)
            joined = len(after["kept"]) > len(before["kept"])  # it joined, and a later call failed
            assert joined or same(after, before), f"call {at}"
            at += 1
        else:
            break
    optimizer.step()
    assert len(pruner.tensors) == 2
    pruner.detach(completed=False)


def test_a_forgotten_argument_of_attach_keeps_the_restored_masks():
    model, optimizer = model_and_optimizer()
    first = Pruner(sparsity=0.9)
    first.attach(model, optimizer, steps=20)
    train(model, optimizer, first, steps=9)
    state, reached = first.state_dict(), first.sparsity
    first.detach(completed=False)
    second = Pruner(sparsity=0.9)
    second.load_state_dict(state)
    with pytest.raises(ValueError, match="need steps with unit='fraction', got steps=None"):
        second.attach(model, optimizer)
    second.attach(model, optimizer, steps=20)
    assert (second.sparsity, second.steps) == (reached, [9])
    second.detach(completed=False)


def test_a_refused_state_leaves_the_waiting_one():
    model, optimizer = model_and_optimizer()
    first = Pruner(sparsity=0.9, schedule=OneShotSchedule(end=0, unit="step"))
    first.attach(model, optimizer)
    train(model, optimizer, first, steps=1)
    state = first.state_dict()
    first.detach()
    second = Pruner(sparsity=0.9, schedule=OneShotSchedule(end=0, unit="step"))
    second.load_state_dict(state)
    with pytest.raises(ValueError, match="need a state of version 2 or earlier, got version=99"):
        second.load_state_dict({**state, "version": 99})
    second.attach(model, optimizer)
    assert second.sparsity == first.sparsity > 0.8
    second.detach()


def test_a_criterion_that_cannot_watch_leaves_no_hook():
    class Broken(WandaCriterion):
        def watch(self, tensor):
            if tensor.name != "0.weight":
                raise PlannedError
            return super().watch(tensor)

    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Pruner(criterion=Broken(), schedule=RAMP)
    with pytest.raises(PlannedError):
        pruner.attach(model, optimizer)
    assert not hooks(model, optimizer)


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_state_is_restored_once_and_not_at_all_if_it_is_forgotten(forgotten):
    model, optimizer = model_and_optimizer()
    first = make("weights", Fuse())
    first.attach(model, optimizer)
    train(model, optimizer, first, steps=3)
    second = make("weights", Fuse())
    second.load_state_dict(first.state_dict())
    if forgotten:
        second.forget_state()
    else:
        second.attach(*model_and_optimizer())
        assert second.sparsity == first.sparsity > 0
        second.detach(completed=False)
    second.attach(*model_and_optimizer())
    assert (second.sparsity, second.steps) == (0, [0])
    second.detach(completed=False)
    first.detach(completed=False)
