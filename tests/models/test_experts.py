"""Fused experts are pruned, and their routers stay dense."""

import pytest
import torch
from torch import nn

from lightning_prune import Pruner
from lightning_prune.models.experts import find_input_axis, stack_rows, unstack_rows
from lightning_prune.models.prunable import find_parameters, prunable_weights, why_unusual
from tests.models.mixtures import Experts, Feedforward, Gated, Listed, Mixture, Parallel


class Gain(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))


@pytest.mark.parametrize(
    ("module", "weights", "routers"),
    [
        (Experts(), ["gate_up_proj", "down_proj"], []),
        (
            Mixture(),
            ["experts.gate_up_proj", "experts.down_proj", "shared_expert.gate_proj.weight"],
            ["gate.weight", "shared_expert_gate.weight"],
        ),
        (nn.ModuleDict({"moe": Parallel()}), ["moe.weight"], []),
        (Feedforward(), ["w1", "w2"], ["wg.weight"]),
        (Listed(), ["experts.0.weight", "experts.1.weight"], ["gate.weight", "gate.bias"]),
        (Gated(), ["gate.weight", "router.weight"], []),
        (nn.ModuleDict({"experts": Gain(1, 4, 4)}), ["experts.weight"], []),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, nn.Module) else "",
)
def test_matrices_of_experts_are_pruned_and_routers_are_not(module, weights, routers):
    reasons = {name: why_unusual(*found) for name, found in find_parameters(module).items()}
    assert list(prunable_weights(module)) == weights
    assert [name for name, why in reasons.items() if why == "router"] == routers


def test_a_parametrized_convolution_of_an_expert_is_no_fused_matrix():
    net = nn.ModuleDict({"experts": nn.utils.parametrizations.weight_norm(nn.Conv1d(8, 8, 3))})
    pruner = Pruner(sparsity=0.5)
    pruner.attach(net, torch.optim.SGD(net.parameters(), lr=0.1), steps=1)
    assert [(t.name, t.is_fused, t.shape) for t in pruner.tensors] == [
        ("experts.parametrizations.weight.original1", False, (8, 8, 3))
    ]


def test_lists_of_parameters_are_named_by_the_list():
    net = nn.Module()
    net.weights = nn.ParameterList([torch.ones(2, 2), torch.ones(2)])
    net.by_weight = nn.ParameterDict({"a": torch.ones(2, 2)})
    net.tokens = nn.ParameterList([torch.ones(2, 2)])
    assert list(prunable_weights(net)) == ["weights.0", "by_weight.a"]


@pytest.mark.parametrize("shape", [(5, 1), (1, 5), (1, 5, 1, 1), (1, 1)])
def test_gains_stay_dense_and_layers_with_one_output_do_not(shape):
    found = find_parameters(Gain(*shape))["weight"]
    assert why_unusual(*found) == "fewer than 2 dimensions larger than 1"
    for layer in (nn.Linear(5, 1), nn.Conv2d(5, 1, 1), nn.LSTM(1, 1)):
        assert prunable_weights(layer)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("seen", [False, True])
def test_the_input_axis_is_told_by_an_attribute_or_by_shapes(transposed, seen):
    experts = Experts(transposed=transposed, seen=seen)
    expected = 1 if transposed else 2
    for parameter in (experts.gate_up_proj, experts.down_proj):
        assert find_input_axis(parameter, experts) == expected


def test_the_input_axis_is_told_by_sizes_or_by_nothing():
    parallel, feedforward = Parallel(), Feedforward()
    assert find_input_axis(parallel.weight, parallel) == 2
    parallel.weight = nn.Parameter(torch.ones(4, 8, 12))
    assert find_input_axis(parallel.weight, parallel) == 1
    assert find_input_axis(feedforward.w1, feedforward) is None


@pytest.mark.parametrize("input_axis", [1, 2])
def test_unstacked_rows_are_the_experts_again(input_axis):
    experts = torch.arange(24).view(2, 3, 4)
    rows = stack_rows(experts, input_axis)
    assert rows.shape == ((6, 4) if input_axis == 2 else (8, 3))
    assert torch.equal(unstack_rows(rows, 2, input_axis), experts)
