"""A budget that several optimizers share, and a model that changes while it trains."""

import pytest
import torch
from torch import nn

from lightning_prune import (
    GlobalAllocation,
    LAMPAllocation,
    ParameterBudget,
    PolynomialSchedule,
    Pruner,
    UniformAllocation,
)

ALLOCATIONS = (None, UniformAllocation(), GlobalAllocation(), LAMPAllocation())
RAMP = PolynomialSchedule(begin=0, end=3, every=1, unit="step")
HALF = ParameterBudget(keep=0.5)


class Pair(nn.Module):
    """A generator and a discriminator."""

    def __init__(self):
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(12, 24), nn.Linear(24, 12))
        self.discriminator = nn.Sequential(nn.Linear(12, 24), nn.Linear(24, 2))
        self.optimizers = [
            torch.optim.SGD(self.generator.parameters(), lr=0.01, momentum=0.9),
            torch.optim.Adam(self.discriminator.parameters()),
        ]

    def step(self, pruner, index):
        optimizer, net = self.optimizers[index], (self.generator, self.discriminator)[index]
        optimizer.zero_grad()
        net(torch.randn(4, 12)).square().mean().backward()
        pruner.before_step(optimizer)
        optimizer.step()


def start(model, **recipe):
    pruner = Pruner(**{"budget": HALF, "schedule": RAMP, **recipe})
    pruner.attach(model, model.optimizers)
    return pruner


def count_nonzeros(model):
    return sum(int((parameter != 0).sum()) for parameter in model.parameters())


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("order", ["0101010101", "0111011101110111", "0000011111", "1111100000"])
def test_optimizers_with_other_numbers_of_steps_share_a_budget(allocation, order):
    model = Pair()
    total = count_nonzeros(model)
    pruner, costs = start(model, allocation=allocation), [1.0]
    for index in order:
        model.step(pruner, int(index))
        (expense,) = pruner.spending
        assert expense.cost == count_nonzeros(model)
        assert expense.share <= min(costs[-1], expense.target)
        costs.append(expense.share)
    pruner.detach()
    assert pruner.spending.is_met
    assert count_nonzeros(model) == total // 2


@pytest.mark.filterwarnings("ignore:training stopped before")
def test_an_optimizer_that_comes_to_the_end_leaves_the_rest_to_the_other():
    alone, together = Pair(), Pair()
    together.load_state_dict(alone.state_dict())
    for model, order in ((alone, "01111"), (together, "0101010101")):
        pruner = start(model)
        for index in order:
            model.step(pruner, int(index))
        pruner.detach()
    kept = [
        [int((layer.weight != 0).sum()) for layer in m.discriminator] for m in (alone, together)
    ]
    assert kept[0] == kept[1]
    assert all((layer.weight != 0).all() for layer in alone.generator)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_a_frozen_layer_that_is_named_shares_the_budget(allocation):
    model = Pair()
    model.discriminator.requires_grad_(False)
    model.optimizers = model.optimizers[:1]
    pruner = start(model, sparsity={"discriminator": 1.0}, allocation=allocation)
    for _ in range(5):
        model.step(pruner, 0)
    pruner.detach()
    assert pruner.spending.is_met
    assert count_nonzeros(model) == pruner.spending[0].limit.final // 1
    assert not model.discriminator[0].weight.all()


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("late", [1, 3, 5])
def test_layers_that_an_optimizer_gains_later_are_within_the_budget(allocation, late):
    model = Pair()
    head = model.discriminator[0]
    model.optimizers[1] = torch.optim.Adam(model.discriminator[1].parameters())
    total, pruner = count_nonzeros(model), start(model, allocation=allocation)
    for step in range(7):
        if step == late:
            model.optimizers[1].add_param_group({"params": list(head.parameters())})
        for index in range(2):
            model.step(pruner, index)
    pruner.detach()
    assert "discriminator.0.weight" in pruner.masks
    assert pruner.spending.is_met
    assert count_nonzeros(model) <= total // 2


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("order", ["01", "10"])
def test_a_layer_that_is_replaced_after_the_end_is_pruned_again(allocation, order):
    model = Pair()
    total, pruner = count_nonzeros(model), start(model, allocation=allocation)
    for _ in range(5):
        for index in range(2):
            model.step(pruner, index)
    before = {name: mask.clone() for name, mask in pruner.masks.items()}
    model.generator[0] = nn.Linear(12, 24)
    model.optimizers[0].add_param_group({"params": list(model.generator[0].parameters())})
    pruner.check_zeros()  # each optimizer looks for what is due
    for _ in range(2):
        for index in order:
            model.step(pruner, int(index))
    pruner.detach()
    assert count_nonzeros(model) <= total // 2
    layer = model.generator[0].weight
    assert int((layer != 0).sum()) < layer.numel()
    for name in before.keys() - {"generator.0.weight"}:
        assert not (pruner.masks[name] & ~before[name]).any()


def test_an_optimizer_of_dense_parameters_waits_for_the_others():
    model = Pair()
    biases = [p for name, p in model.discriminator.named_parameters() if "bias" in name]
    weights = [p for name, p in model.discriminator.named_parameters() if "bias" not in name]
    model.optimizers[0].add_param_group({"params": weights})
    model.optimizers[1] = torch.optim.Adam(biases)
    total, pruner = count_nonzeros(model), start(model)
    for _ in range(5):
        for index in range(2):
            model.step(pruner, index)
    model.generator[0] = nn.Linear(12, 24)
    model.optimizers[0].add_param_group({"params": list(model.generator[0].parameters())})
    pruner.check_zeros()
    for index in (1, 0):
        model.step(pruner, index)
    pruner.detach()
    assert count_nonzeros(model) <= total // 2
