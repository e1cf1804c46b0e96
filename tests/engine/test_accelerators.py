"""Updates on an accelerator: masks as on a CPU, and no wait for each tensor."""

import pytest
import torch
from torch import nn

from lightning_prune import (
    ERKAllocation,
    GlobalAllocation,
    GradientCriterion,
    LAMPAllocation,
    MovementCriterion,
    NMPattern,
    PolynomialSchedule,
    Pruner,
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
    "rows": {"pattern": UnstructuredPattern(per_row=True)},
}
WAITS = 3
"""An update reads once which pruned weights are not 0, once whether scores are finite, and once how
many weights the masks keep."""


def make_net(tensors=3, dtype=torch.float32):
    torch.manual_seed(0)
    layers = [nn.Linear(8 + 4 * (i % 3), 8 + 4 * ((i + 1) % 3)) for i in range(tensors)]
    return nn.Sequential(*layers).to(dtype)


def start(net, **recipe):
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    pruner = Pruner(**{"sparsity": 0.75, "schedule": RAMP, **recipe})
    pruner.attach(net, optimizer, steps=6)
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


@pytest.mark.parametrize("name", ["uniform", "ERK", "held scores", "signed scores"])
def test_an_update_waits_three_times_whatever_the_number_of_tensors(name):
    few, many = count_waits(3, **RECIPES[name]), count_waits(9, **RECIPES[name])
    assert len(few) == len(many)
    assert len(many) == WAITS + (name == "signed scores")  # a global ranking waits once more


def test_an_update_of_groups_of_4_waits_twice_for_each_tensor_and_twice_for_all():
    # At sparsity 0.5 the pattern also looks whether at most 2 of each 4 are kept.
    recipe = {"pattern": NMPattern(n=2, m=4), "sparsity": 0.6}
    few, many = count_waits(3, **recipe), count_waits(9, **recipe)
    assert (len(many) - len(few)) / 6 <= 2


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
