"""Updates on an accelerator: masks as on a CPU, and no wait for each tensor."""

import pytest
import torch
from torch import nn

from lightning_prune import (
    BlockPattern,
    BranchPattern,
    ChannelPattern,
    Criterion,
    ERKAllocation,
    GlobalAllocation,
    GradientCriterion,
    LAMPAllocation,
    MovementCriterion,
    NMPattern,
    OneShotSchedule,
    Phases,
    PolynomialSchedule,
    Pruner,
    RandomCriterion,
    Regrow,
    StraightThrough,
    TaylorCriterion,
    UniformAllocation,
    UnstructuredPattern,
)
from tests.accelerators import as_on_an_accelerator, waits_of_the_host

RAMP = PolynomialSchedule(begin=1, end=4, every=1, unit="step")
RECIPES = {
    "uniform": {"allocation": UniformAllocation()},
    "ERK": {"allocation": ERKAllocation()},
    "global": {"allocation": GlobalAllocation()},
    "LAMP": {"allocation": LAMPAllocation()},
    "at most": {"allocation": GlobalAllocation(), "most": 0.8},
    "held scores": {"criterion": TaylorCriterion()},
    "signed scores": {"criterion": MovementCriterion(), "allocation": GlobalAllocation()},
    "RigL": {"regrow": Regrow(criterion=GradientCriterion(), schedule=RAMP)},
    "straight-through": {"straight_through": StraightThrough()},
    "N:M": {"pattern": NMPattern(n=2, m=4), "sparsity": 0.5},
    "N:M on the way": {"pattern": NMPattern(n=2, m=4), "sparsity": 0.6},
    "rows": {"pattern": UnstructuredPattern(per_row=True)},
    "blocks": {"pattern": BlockPattern(shape=(2, 2))},
    "global blocks": {"pattern": BlockPattern(shape=(2, 2)), "allocation": GlobalAllocation()},
    "global rows": {
        "pattern": UnstructuredPattern(per_row=True),
        "allocation": GlobalAllocation(),
    },
    "RigL in N:M": {
        "pattern": NMPattern(n=2, m=4),
        "sparsity": 0.6,
        "regrow": Regrow(criterion=GradientCriterion(), schedule=RAMP),
    },
    "SET": {
        "schedule": OneShotSchedule(end=0, unit="step"),
        "regrow": Regrow(criterion=RandomCriterion(), first=RandomCriterion(), schedule=RAMP),
    },
    "straight-through in N:M": {
        "pattern": NMPattern(n=2, m=4),
        "sparsity": 0.5,
        "straight_through": StraightThrough(),
    },
    "phases": {
        "schedule": OneShotSchedule(end=0, unit="step"),
        "phases": Phases(begin=1, end=5, rounds=1, unit="step"),
    },
}
WAITS = {
    "uniform": 1,
    "ERK": 1,
    "held scores": 1,
    "global": 2,
    "signed scores": 2,
    "RigL": 2,
    "SET": 2,
    "N:M": 1,
    "N:M on the way": 1,
    "rows": 1,
    "blocks": 1,
    "global blocks": 2,
    "global rows": 2,
    "RigL in N:M": 3,
}
"""An update reads at once which pruned weights are not 0, whether scores are finite, and how many
weights and atoms the masks will keep. A global ranking reads the threshold before. Regrowth reads
the numbers after pruning, and then a pattern with bounds reads the numbers of atoms."""


def make_net(tensors=3, dtype=torch.float32):
    torch.manual_seed(0)
    layers = [nn.Linear(8 + 4 * (i % 3), 8 + 4 * ((i + 1) % 3)) for i in range(tensors)]
    return nn.Sequential(*layers).to(dtype)


class Branch(nn.Module):
    """A residual branch of two layers."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        return x + self.down(self.up(x).relu())


def start(net, make=torch.optim.AdamW, example=None, **recipe):
    optimizer = make(net.parameters(), lr=0.01)
    pruner = Pruner(**{"sparsity": 0.75, "schedule": RAMP, **recipe})
    pruner.attach(net, optimizer, steps=6, example=example)
    return optimizer, pruner


def train(net, optimizer, pruner, steps=6):
    for step in range(steps):
        optimizer.zero_grad()
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(step))
        net(x.to(net[0].weight.dtype)).square().mean().backward()
        pruner.before_step(optimizer)
        optimizer.step()


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_masks_and_weights_are_those_of_a_cpu(recipe):
    dtype = torch.bfloat16  # it has many ties
    trained = []
    for on_accelerator in (False, True):
        net = make_net(dtype=dtype)
        with pytest.MonkeyPatch.context() as patch:
            if on_accelerator:
                patch.setattr("lightning_prune.tensors.parts.READS_AT_ONCE", ())
                patch.setattr("lightning_prune.tensors.masks.BITS_ON", ())
            optimizer, pruner = start(net, **recipe)
            train(net, optimizer, pruner)
            trained.append((net.state_dict(), pruner.masks, pruner.updates))
    (weights, masks, updates), (other_weights, other_masks, other_updates) = trained
    assert updates == other_updates
    for name, mask in masks.items():
        assert torch.equal(mask, other_masks[name])
    for name, values in weights.items():
        assert torch.equal(values, other_weights[name])


def count_waits(tensors, **recipe):
    """Return the waits of the last update; earlier ones have pruned weights already."""
    net = make_net(tensors)
    with as_on_an_accelerator():
        optimizer, pruner = start(net, **recipe)
        train(net, optimizer, pruner, steps=4)
        net(torch.ones(1, 8)).sum().backward()
        before = pruner.updates
        with waits_of_the_host() as waits:
            pruner.before_step(optimizer)
        assert pruner.updates == before + 1
    return waits


@pytest.mark.parametrize("name", WAITS)
def test_the_waits_of_an_update_do_not_grow_with_the_number_of_tensors(name):
    few, many = count_waits(3, **RECIPES[name]), count_waits(9, **RECIPES[name])
    assert len(few) == len(many) == WAITS[name]


@pytest.mark.parametrize(
    ("name", "waits"), [("straight-through", 1), ("straight-through in N:M", 1)]
)
def test_a_step_with_straight_through_waits_for_the_masks_only(name, waits):
    for tensors in (3, 9):
        net = make_net(tensors)
        with as_on_an_accelerator():
            optimizer, pruner = start(net, torch.optim.SGD, **RECIPES[name])  # AdamW waits, too
            train(net, optimizer, pruner, steps=5)
            net(torch.ones(1, 8)).sum().backward()
            with waits_of_the_host() as seen:
                pruner.before_step(optimizer)
                before = pruner.choices
                optimizer.step()
            assert pruner.choices == before + 1
        assert len(seen) == waits


@pytest.mark.parametrize(
    ("recipe", "waits"),
    [
        ({"pattern": ChannelPattern(round_to=1)}, 2),
        ({"pattern": ChannelPattern(round_to=1), "allocation": GlobalAllocation()}, 3),
        ({"pattern": BranchPattern(), "sparsity": 0.9}, 2),
    ],
    ids=["channels", "global channels", "branches"],
)
def test_the_waits_do_not_grow_with_the_channels_and_branches(recipe, waits):
    for layers in (2, 5):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 8), *(Branch() for _ in range(layers)), nn.Linear(8, 8))
        with as_on_an_accelerator():
            optimizer, pruner = start(net, example=torch.ones(1, 8), **recipe)
            train(net, optimizer, pruner, steps=3)
            net(torch.ones(1, 8)).sum().backward()
            before = pruner.updates
            with waits_of_the_host() as seen:
                pruner.before_step(optimizer)
            assert pruner.updates == before + 1
        assert len(seen) == waits


@pytest.mark.parametrize("allocation", [UniformAllocation(), ERKAllocation()])
def test_a_plan_that_needs_no_scores_makes_no_masks(allocation, monkeypatch):
    def refuse(*_):
        raise AssertionError

    net = make_net()
    with monkeypatch.context() as patch:
        patch.setattr("lightning_prune.recipe.nm_pattern.choose_best_of_groups", refuse)
        _, pruner = start(net, pattern=NMPattern(n=2, m=4), sparsity=0.5, allocation=allocation)
    assert pruner.plan == {f"{index}.weight": 0.5 for index in range(3)}


def test_pruned_weights_that_left_zero_are_found_before_scores_that_are_not_finite():
    net = make_net()
    with as_on_an_accelerator():
        optimizer, pruner = start(net)
        train(net, optimizer, pruner, steps=3)
        before = {name: mask.clone() for name, mask in pruner.masks.items()}
        with torch.no_grad():
            net[1].weight.fill_(torch.nan)
        with pytest.raises(RuntimeError, match=r"need pruned weights to be 0, got .* '1.weight'"):
            pruner.before_step(optimizer)
        for name, mask in pruner.masks.items():
            assert torch.equal(mask, before[name])


class SeesZeros(Criterion):
    """Scores weights after a look at the pruned ones."""

    def score(self, tensor, state):
        assert not tensor.weights[~tensor.mask.kept].any()
        return tensor.weights.abs()


def test_a_warning_of_pruned_weights_that_left_zero_masks_them_before_they_are_scored():
    net = make_net()
    with as_on_an_accelerator():
        optimizer, pruner = start(net, on_revival="warn", criterion=SeesZeros())
        train(net, optimizer, pruner, steps=3)
        with torch.no_grad():
            net[1].weight.fill_(1.0)
        with pytest.warns(UserWarning, match="they are masked again"):
            pruner.before_step(optimizer)
        assert not net[1].weight[~pruner.masks["1.weight"]].any()


def test_a_score_that_is_not_finite_changes_nothing():
    net = make_net()
    with as_on_an_accelerator():
        optimizer, pruner = start(net)
        train(net, optimizer, pruner, steps=2)
        before = {name: mask.clone() for name, mask in pruner.masks.items()}
        with torch.no_grad():
            net[1].weight[pruner.masks["1.weight"].nonzero()[0].unbind()] = torch.nan
        with pytest.raises(ValueError, match=r"need finite scores, got 1 .* for '1.weight'"):
            pruner.before_step(optimizer)
        for name, mask in pruner.masks.items():
            assert torch.equal(mask, before[name])
