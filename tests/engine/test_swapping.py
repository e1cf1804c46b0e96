"""Optimizers that swap what they train, and models that swap their layers."""

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from lightning_prune import (
    MovementCriterion,
    OneShotSchedule,
    PolynomialSchedule,
    Pruner,
    UniformAllocation,
)
from tests.engine.foreign_optimizers import Codes, Eighth, LowRank, Momentum, NoZero, PlainCodes
from tests.hooks import hooks

LAYERS, WIDTH, STEPS = 3, 8, 12
AT_ONCE = OneShotSchedule(end=0, unit="step")
EVERY_STEP = PolynomialSchedule(begin=0, end=STEPS, every=1, unit="step", initial=0.2)
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "sign": lambda p: torch.optim.Rprop(p, lr=0.01),
    "codes": lambda p: Momentum(p, Codes),
    "codes without zero": lambda p: Momentum(p, NoZero),
    "plain codes": PlainCodes,
    "low rank": LowRank,
    "eight bits": Eighth,
}


def make_model():
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))


def start(model, *, optimizer="sgd", schedule=AT_ONCE, sparsity=0.5, **answers):
    made = OPTIMIZERS[optimizer](model.parameters())
    answers.setdefault("allocation", UniformAllocation())
    pruner = Pruner(sparsity=sparsity, schedule=schedule, **answers)
    pruner.attach(model, made, steps=STEPS)
    return made, pruner


def train(model, optimizer, pruner, first=0, steps=1):
    for step in range(first, first + steps):
        x = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        pruner.before_step(optimizer)
        optimizer.step()


def zeros(layer):
    return int((layer.weight == 0).sum())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_layer_that_is_unfrozen_while_another_is_frozen_is_pruned_at_once(optimizer):
    model = make_model()
    model[1].requires_grad_(False)
    optimizer, pruner = start(model, optimizer=optimizer)
    train(model, optimizer, pruner)
    assert pruner.dense["1.weight"] == "frozen"
    for turn in range(4):
        frozen, trained = model[turn % 2], model[1 - turn % 2]
        frozen.requires_grad_(False)
        trained.requires_grad_(True)
        before = frozen.weight.clone()
        train(model, optimizer, pruner, first=1 + turn)
        assert torch.equal(frozen.weight, before)
        assert [zeros(layer) for layer in model] == [32, 32, 32]
        assert list(pruner.masks) == ["0.weight", "1.weight", "2.weight"]
    assert pruner.sparsity == 0.5


def test_a_parameter_that_is_replaced_in_its_group_is_pruned_at_once():
    model = make_model()
    optimizer, pruner = start(model)
    train(model, optimizer, pruner)
    model[2] = nn.Linear(WIDTH, WIDTH)
    optimizer.param_groups[0]["params"] = list(model.parameters())
    train(model, optimizer, pruner, first=1)
    assert [zeros(layer) for layer in model] == [32, 32, 32]
    assert all(t.parameter is model.get_parameter(t.name) for t in pruner.tensors)


@pytest.mark.parametrize("when", ["at a due point", "at the end"])
def test_a_layer_that_no_optimizer_trains_takes_no_mask_of_the_layer_before_it(when):
    model = make_model()
    optimizer, pruner = start(model, schedule=EVERY_STEP)
    train(model, optimizer, pruner, steps=STEPS - 1 if when == "at a due point" else STEPS + 1)
    model[2] = nn.Linear(WIDTH, WIDTH)
    if when == "at a due point":
        train(model, optimizer, pruner, first=STEPS, steps=2)
    pruner.detach()
    assert list(pruner.masks) == ["0.weight", "1.weight"]
    assert pruner.dense["2.weight"] == "no optimizer owns it"
    assert [zeros(layer) for layer in model] == [32, 32, 0]


def test_a_tensor_that_leaves_its_optimizer_and_comes_back_keeps_its_mask():
    model = make_model()
    optimizer, pruner = start(model)
    train(model, optimizer, pruner)
    (group,), mask = optimizer.param_groups, pruner.masks["1.weight"]
    everything = list(group["params"])
    group["params"] = [p for p in everything if p is not model[1].weight]
    train(model, optimizer, pruner, first=1)
    assert torch.equal(pruner.masks["1.weight"], mask)
    group["params"] = everything
    train(model, optimizer, pruner, first=2)
    assert torch.equal(pruner.masks["1.weight"], mask)
    assert torch.equal(model[1].weight != 0, mask)


def test_a_layer_that_leaves_the_model_and_comes_back_brings_its_mask():
    model = make_model()
    optimizer, pruner = start(model, schedule=EVERY_STEP)
    train(model, optimizer, pruner, steps=3)
    layer, mask = model[1], pruner.masks["1.weight"]
    model[1] = nn.Identity()
    train(model, optimizer, pruner, first=3)
    assert list(pruner.masks) == ["0.weight", "2.weight"]
    model[1] = layer
    train(model, optimizer, pruner, first=4)
    assert list(pruner.masks) == ["0.weight", "1.weight", "2.weight"]
    assert not (pruner.masks["1.weight"] & ~mask).any()
    assert torch.equal(model[1].weight != 0, pruner.masks["1.weight"])


def test_a_frozen_layer_whose_gradient_is_needed_is_an_error_that_says_so():
    model = make_model()
    optimizer, pruner = start(model, criterion=MovementCriterion())
    train(model, optimizer, pruner)
    model[1].requires_grad_(False)
    with pytest.raises(ValueError, match=r"got none for '1\.weight' at step 1: the tensor is froz"):
        train(model, optimizer, pruner, first=1)


class Swaps:
    """A model whose layers and optimizer change between steps, and what must hold after each."""

    def __init__(self, optimizer):
        self.kind, self.model = optimizer, make_model()
        self.spare = [nn.Identity() for _ in range(LAYERS)]
        self.optimizer, self.pruner = start(
            self.model, optimizer=optimizer, schedule=EVERY_STEP, sparsity=0.75
        )

    @property
    def held(self):
        return self.optimizer.param_groups[0]["params"]

    def freeze(self, index):
        self.model[index].requires_grad_(False)

    def thaw(self, index):
        self.model[index].requires_grad_(True)

    def drop(self, index):
        gone = {id(p) for p in self.model[index].parameters()}
        self.optimizer.param_groups[0]["params"] = [p for p in self.held if id(p) not in gone]

    def give_back(self, index):
        held = {id(p) for p in self.held}
        self.held.extend(p for p in self.model[index].parameters() if id(p) not in held)

    def replace(self, index):
        self.drop(index)
        self.model[index] = nn.Linear(WIDTH, WIDTH)
        self.give_back(index)

    def exchange(self, index):
        """Put the layer aside and an identity into its place, or the other way round."""
        self.model[index], self.spare[index] = self.spare[index], self.model[index]

    def resume(self, index):
        if not self.held or not [*self.model.parameters()]:
            return  # no optimizer, and no pruner, starts without parameters
        state, present = self.pruner.state_dict(), dict(self.model.named_parameters())
        same = [t for t in self.pruner.tensors if present.get(t.name) is t.parameter]
        before = {tensor.name: tensor.mask.kept for tensor in same}
        held = [*self.held]
        self.pruner.detach(completed=False)
        self.pruner = Pruner.from_recipe(self.pruner.recipe)
        self.pruner.load_state_dict(state)
        self.optimizer = OPTIMIZERS[self.kind](held)
        self.pruner.attach(self.model, self.optimizer, steps=STEPS)
        for name, mask in self.pruner.masks.items():
            assert name not in before or torch.equal(mask, before[name])
        after = self.pruner.state_dict()["masks"]
        assert all(torch.equal(after[name], mask) for name, mask in state["masks"].items())

    def step(self, step):
        if not any(p.requires_grad for p in self.model.parameters()):
            self.model[-1] = nn.Linear(WIDTH, WIDTH)
            self.give_back(-1)
        train(self.model, self.optimizer, self.pruner, first=step)

    def check(self):
        present, held = dict(self.model.named_parameters()), {id(p) for p in self.held}
        masks = self.pruner.masks
        for name, parameter in present.items():
            if parameter.ndim == 2 and parameter.requires_grad and id(parameter) in held:
                assert name in masks
        for tensor in self.pruner.tensors:
            assert present[tensor.name] is tensor.parameter
            assert torch.equal(tensor.parameter != 0, masks[tensor.name])
            assert tensor.kept == round(tensor.total * (1 - self.pruner.sparsity_target))
        pruned = sum(int((t.parameter == 0).sum()) for t in self.pruner.tensors)
        total = sum(t.total for t in self.pruner.tensors)
        assert self.pruner.sparsity == pytest.approx(pruned / total if total else 0)


SWAPS = ["freeze", "thaw", "drop", "give_back", "replace", "exchange", "resume"]


# A layer that was away during a resume comes back without its mask, which a warning says.
@pytest.mark.filterwarnings("ignore:weights are 0 and no mask says why")
@pytest.mark.filterwarnings("ignore:nothing is pruned until a weight is trained")
@settings(max_examples=60)
@given(
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    swaps=st.lists(
        st.lists(
            st.tuples(st.sampled_from(SWAPS), st.integers(0, LAYERS - 1)), min_size=0, max_size=3
        ),
        min_size=4,
        max_size=STEPS - 1,
    ),
)
def test_any_swap_leaves_every_trained_layer_pruned_to_the_target_and_counted(optimizer, swaps):
    torch.manual_seed(0)
    run = Swaps(optimizer)
    for step, now in enumerate(swaps):
        for action, index in now:
            getattr(run, action)(index)
        run.step(step)
        run.check()
    run.pruner.detach(completed=False)
    assert not hooks(run.optimizer, run.model)


def test_a_layer_that_is_frozen_leaves_comes_back_and_thaws_is_pruned_at_once():
    run = Swaps("sgd")
    for action in ("freeze", "exchange"):
        getattr(run, action)(1)
    run.step(0)
    run.exchange(1)
    run.step(1)
    run.thaw(1)
    run.step(2)
    run.check()
