"""Rows are chosen and added up by number or by value, and channels run beside them."""

import pytest
import torch
from torch import nn

from lightning_prune import ChannelPattern, OneShotSchedule, Pruner, adopt, shrink, shrunk_state
from lightning_prune.channels.coupling import couple

NODES = torch.randn(10, 4, generator=torch.Generator().manual_seed(1))
EDGES = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 3, 0], [1, 2, 3, 3, 5, 6, 7, 7, 9, 0, 1, 5]])
REDUCTIONS = {
    "index_add": lambda out, to, x: out.index_add(0, to, x),
    "index_add_": lambda out, to, x: out.index_add_(0, to, x),
    "index_copy": lambda out, to, x: out.index_copy(0, to, x),
    "index_reduce": lambda out, to, x: out.index_reduce(0, to, x, "amax"),
    "scatter": lambda out, to, x: out.scatter(0, to[:, None].expand_as(x), x),
    "scatter_add": lambda out, to, x: out.scatter_add(0, to[:, None].expand_as(x), x),
    "scatter_add_": lambda out, to, x: out.scatter_add_(0, to[:, None].expand_as(x), x),
    "scatter_reduce": lambda out, to, x: out.scatter_reduce(0, to[:, None].expand_as(x), x, "mean"),
}
FILLS = {
    "new_zeros": lambda x: x.new_zeros(10, x.shape[1]),
    "zeros": lambda x: torch.zeros(10, x.shape[1], device=x.device),
    "zeros_like": lambda x: torch.zeros_like(x),
    "full": lambda x: torch.full((10, x.shape[1]), 0.5, device=x.device),
}


class GraphNetwork(nn.Module):
    """Two rounds of messages along the edges; self-loops are left out by their values."""

    def __init__(self, reduction="index_add", filling="new_zeros", has_free_sizes=True):
        super().__init__()
        self.reduce, self.fill = REDUCTIONS[reduction], FILLS[filling]
        self.has_free_sizes = has_free_sizes
        self.first, self.second, self.head = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def pass_messages(self, x, edges):
        if self.has_free_sizes:
            edges = edges[:, edges[0] != edges[1]]
        return self.reduce(self.fill(x), edges[1], x[edges[0]])

    def forward(self, nodes, edges):
        x = self.pass_messages(self.first(nodes), edges).relu()
        x = self.pass_messages(self.second(x), edges).relu()
        return self.head(x)


def prune_and_shrink(module, fresh, *example):
    """Prune half of the channels, remove them, and return the groups and the smaller module."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    pattern = ChannelPattern(round_to=1)
    pruner = Pruner(sparsity=0.5, pattern=pattern, schedule=OneShotSchedule(end=0))
    pruner.attach(module, optimizer, steps=1, example=example)
    module(*example).square().mean().backward()
    pruner.before_step(optimizer)
    optimizer.step()
    pruner.detach()
    smaller = shrink(module, example)
    adopt(fresh, shrunk_state(smaller))
    with torch.no_grad():
        torch.testing.assert_close(smaller(*example), module(*example))
        assert torch.equal(fresh(*example), smaller(*example))
    return {group.name: group.kept for group in pruner.groups}, smaller


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_features_stay_apart_where_rows_are_added_up_by_number(reduction):
    torch.manual_seed(0)
    arguments = {"reduction": reduction, "has_free_sizes": False}
    groups, smaller = prune_and_shrink(
        GraphNetwork(**arguments), GraphNetwork(**arguments), NODES, EDGES
    )
    assert groups == {"first.weight": 8, "second.weight": 8}
    assert smaller.second.weight.shape == (8, 8)


@pytest.mark.parametrize("filling", FILLS)
def test_features_are_followed_beside_sizes_that_depend_on_values(filling):
    torch.manual_seed(0)
    arguments = {"filling": filling, "reduction": "scatter_add"}
    groups, smaller = prune_and_shrink(
        GraphNetwork(**arguments), GraphNetwork(**arguments), NODES, EDGES
    )
    # Half of 1, which `full` leaves at each entry, is not 0, but the readers of it are.
    assert groups == {"first.weight": 8, "second.weight": 8}
    assert smaller.second.weight.shape == (8, 8)


def test_rows_that_a_mask_chooses_leave_channels_free():
    class Chosen(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Linear(4, 16), nn.Linear(16, 2)

        def forward(self, x):
            rows = self.first(x).relu()[x[:, 0] > 0]
            return self.head(rows.reshape(rows.shape[0], 4, -1).flatten(1))

    torch.manual_seed(0)
    groups, smaller = prune_and_shrink(Chosen(), Chosen(), NODES)
    assert groups == {"first.weight": 2}  # of 4 pieces
    assert smaller.head.in_features == 8


class Channelwise(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.first, self.head = nn.Linear(4, 10), nn.Linear(10, 2)
        self.function = function

    def forward(self, nodes, edges):
        return self.head(self.function(self.first(nodes), edges))


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x, e: torch.zeros(10, 10).index_add(1, e[0], x[:, e[1]]), "passes through index"),
        (lambda x, e: torch.zeros(10, 10).index_add(1, e[0][:10], x), "passes through index_add"),
        (lambda x, e: x.scatter_add(0, torch.arange(100).view(10, 10) % 7, x), "meets values"),
        (lambda x, e: x.scatter(1, e[:, :10], 1.0), "passes through scatter"),
        (lambda x, e: x[:, x.sum(0) > 0].sum(1, keepdim=True) + x, "passes through index"),
    ],
)
def test_channels_that_are_chosen_or_added_up_by_number_stay_dense(function, reason):
    groups = couple(Channelwise(function), (NODES, EDGES)).groups
    group = next(each for each in groups if each.producers[0] == "first.weight")
    assert reason in group.why_dense
