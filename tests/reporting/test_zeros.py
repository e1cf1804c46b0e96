"""Patterns, removed channels and emptied layers, as the weights show them."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_prune import NMPattern
from tests.reporting.reports import counted, shown


@pytest.mark.parametrize(
    ("zeros", "pattern"),
    [
        ((), "dense"),
        ((slice(None),), "empty"),
        ((slice(3, 6),), "channels: 5 of 8 outputs"),
        ((slice(None), slice(0, 6)), "channels: 10 of 16 inputs"),
        ((slice(4, 8), slice(0, 2)), "blocks of 4 x 18"),
        ((0, 0, 0, 0), "unstructured"),
    ],
)
def test_patterns_are_seen_in_the_weights(zeros, pattern):
    layer = nn.Conv2d(16, 8, 3)
    if zeros:
        nn.init.zeros_(layer.weight[zeros])
    found = counted(layer, torch.randn(1, 16, 4, 4))
    assert found.layers[0].pattern == pattern


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (1, 4), (5, 8)])
def test_n_of_m_is_seen_in_the_weights_and_not_in_chance(n, m):
    layer = nn.Conv2d(32, 16, 3)
    scores = layer.weight.detach().abs()
    _, kept = NMPattern(n=n, m=m).bounds(scores, scores > -1, due=scores.numel() * n // m)
    layer.weight.data[~kept] = 0
    found = counted(layer, torch.randn(1, 32, 3, 3))
    assert found.layers[0].pattern == f"{n}:{m}"
    unstructured = nn.Linear(64, 2)
    unstructured.weight.data[torch.rand(2, 64) < 0.95] = 0
    assert counted(unstructured, torch.randn(1, 64)).layers[0].pattern == "unstructured"


def test_both_sides_of_removed_channels_are_counted():
    layer = nn.Linear(8, 6)
    layer.weight.data[2:] = 0
    layer.weight.data[:, :4] = 0
    pattern = counted(layer, torch.randn(1, 8)).layers[0].pattern
    assert pattern == "channels: 2 of 6 outputs, 4 of 8 inputs"


def test_outputs_of_a_transposed_convolution_are_its_second_axis():
    layer = nn.ConvTranspose1d(4, 6, 3)
    layer.weight.data[:, :2] = 0
    pattern = counted(layer, torch.randn(1, 4, 5)).layers[0].pattern
    assert pattern == "channels: 4 of 6 outputs"


def test_emptied_layers_and_what_they_make_constant_are_named():
    net = nn.Sequential(
        nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
    )
    nn.init.zeros_(net[2].weight)
    found = counted(net, torch.randn(2, 4))
    assert found.emptied == ("2.weight",)
    assert found.constant == ("3", "4", "output")
    text = shown(found, 100)
    assert "warning: all weights are zero in 2.weight" in text
    assert "warning: therefore the output is constant in 3, 4" in text
    assert "the output of the model no longer depends on the input" in text


def test_an_emptied_branch_beside_a_path_makes_only_itself_constant():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, values):
            return self.last(values + self.second(functional.relu(self.first(values))))

    net = Residual()
    nn.init.zeros_(net.first.weight)
    found = counted(net, torch.randn(2, 4))
    assert found.emptied == ("first.weight",)
    assert found.constant == ("second",)


def test_what_is_constant_without_zeros_is_no_warning():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.randn(3, 4))
            self.layer, self.other = nn.Linear(4, 4), nn.LSTM(4, 4)

        def forward(self, values):
            return self.other(values + self.layer(self.table))[0]

    class Table(Positions):
        def forward(self, values):
            return self.layer(self.table)

    found = counted(Positions(), torch.randn(3, 4))
    assert (found.emptied, found.constant, found.notes) == ((), (), ())
    assert counted(Table(), torch.randn(3, 4)).constant == ()


def test_zeros_are_filled_where_nothing_else_is_given():
    seen = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(30, 40))

        def forward(self, values):
            seen.append(self.weight.clone())
            return nn.functional.linear(values, self.weight)

    layer = Watched()
    layer.weight.data *= torch.rand(30, 40) < 0.1
    counted(layer, torch.randn(1, 40))
    pruned, full = seen
    kept = pruned != 0
    assert torch.equal(pruned, layer.weight)
    assert torch.equal(full[kept], pruned[kept])
    assert 0.5e-2 < full[~kept].std() / pruned[kept].std() < 2e-2
    assert (full != 0).all()
