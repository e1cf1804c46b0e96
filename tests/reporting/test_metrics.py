import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from lightning_prune import Sparsity
from lightning_prune.reporting.metrics import sparsity


def test_zeros_of_both_signs_are_counted():
    assert sparsity([torch.tensor([0.0, -0.0, 1e-40, 1.0])]) == 0.5


def test_of_a_module_the_prunable_weights_are_counted():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Embedding(4, 4))
    nn.init.zeros_(net[0].bias)
    nn.init.zeros_(net[2].weight)
    net[0].weight.detach()[:1] = 0
    assert sparsity(net) == 0.25


def test_it_audits_the_pruning_of_others():
    layer = nn.Linear(10, 10)
    prune.l1_unstructured(layer, "weight", amount=0.3)
    assert sparsity(layer) == 0.3
    prune.remove(layer, "weight")
    assert sparsity(layer) == 0.3


def test_zeros_that_do_not_reach_the_weight_are_not_counted():
    class Shift(nn.Module):
        def forward(self, x):
            return x + 1

    net = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))
    parametrize.register_parametrization(net[1], "weight", Shift())
    net[1].parametrizations.weight.original.detach().zero_()
    assert sparsity(net) == 0.0


def test_the_metric_equals_its_function_over_all_updates():
    first, second = torch.tensor([0.0, 1.0, 2.0]), torch.zeros(5)
    metric = Sparsity()
    metric.update([first])
    metric.update([second])
    assert metric.compute() == sparsity([first, second]) == 0.75
    metric.reset()
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert metric.compute().isnan()


def test_nothing_has_no_sparsity():
    assert sparsity([]).isnan()
    assert sparsity(nn.ReLU()).isnan()
