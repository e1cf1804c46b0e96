"""Allocations and budgets that read the cost that an atom saves."""

import pytest
import torch
from torch import nn

from lightning_prune import (
    ChannelPattern,
    GlobalAllocation,
    LatencyBudget,
    LatencyTable,
    ParameterBudget,
    Pruner,
)

CHANNELS = ChannelPattern(round_to=1)
TABLE = LatencyTable(
    ms={
        "*": {64: 1.0, 32: 0.5, 16: 0.25},
        "0.weight": {32: 1.0, 16: 0.55, 8: 0.3},
        "2.weight": {32: 1.0, 16: 0.99, 8: 0.98},
    }
)


def make_net():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    for parameter in net.parameters():
        nn.init.uniform_(parameter, 0.5, 1.0)
    return net


def prune(net, *, latencies=None, **answers):
    """Prune in a single step, and return the engine."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    pruner = Pruner(**answers)
    pruner.attach(net, optimizer, steps=2, example=torch.zeros(1, 8), latencies=latencies)
    for _ in range(2):
        net(torch.ones(4, 8)).sum().backward()
        pruner.before_step(optimizer)
        optimizer.step()
    pruner.detach()
    return pruner


def test_per_latency_the_group_that_saves_most_loses_most():
    by_latency = GlobalAllocation(per="latency")
    pruner = prune(
        make_net(), sparsity=0.5, pattern=CHANNELS, allocation=by_latency, latencies=TABLE
    )
    first, second = pruner.groups
    assert (first.kept, second.kept) == (1, 31)


def test_per_macs_weights_of_equal_use_are_ranked_by_scores_alone():
    plain, paid = make_net(), make_net()
    prune(plain, budget=ParameterBudget(keep=0.5), allocation=GlobalAllocation())
    prune(paid, budget=ParameterBudget(keep=0.5), allocation=GlobalAllocation(per="macs"))
    assert all(
        torch.equal(a, b) for a, b in zip(plain.parameters(), paid.parameters(), strict=True)
    )


def test_a_latency_budget_lands_by_the_table():
    pruner = prune(make_net(), budget=LatencyBudget(speedup=2.0), pattern=CHANNELS, latencies=TABLE)
    (expense,) = pruner.spending
    assert expense.cost <= expense.limit.final == 0.5


def test_a_latency_without_measurements_says_how_to_measure():
    with pytest.raises(ValueError, match=r"need measured latencies .*, got latencies=None; give"):
        prune(make_net(), budget=LatencyBudget(speedup=2.0), pattern=CHANNELS)


def test_a_cost_that_is_measured_is_taken_over():
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    pruner = Pruner(budget=LatencyBudget(speedup=2.0), pattern=CHANNELS)
    pruner.attach(net, optimizer, steps=9, example=torch.zeros(1, 8), latencies=TABLE)
    kept = []
    for step in range(9):
        net(torch.ones(4, 8)).sum().backward()
        pruner.before_step(optimizer)
        optimizer.step()
        kept.append(sum(group.kept for group in pruner.groups))
        if step == 6:
            pruner.correct_cost("latency", 1.2 * pruner.spending[0].cost)
    assert kept[6] > kept[7] == kept[8]
    assert pruner.spending.is_met
    pruner.detach()


@pytest.mark.parametrize(
    "answers",
    [
        {"sparsity": 0.5, "allocation": GlobalAllocation(per="latency")},
        {"budget": LatencyBudget(speedup=2.0)},
        {"budget": LatencyBudget(speedup=2.0), "allocation": GlobalAllocation(per="latency")},
    ],
)
def test_a_resumed_run_does_not_measure_again(answers):
    def measure(selection):
        raise AssertionError("measured again")

    before = prune(make_net(), pattern=CHANNELS, latencies=TABLE, **answers)
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    after = Pruner(pattern=CHANNELS, **answers)
    after.load_state_dict(before.state_dict())
    after.attach(net, optimizer, steps=2, example=torch.zeros(1, 8), latencies=measure)
    assert after.state_dict()["costs"] == before.state_dict()["costs"] != {}
    assert [group.kept for group in after.groups] == [group.kept for group in before.groups]
    after.detach(completed=False)
