"""A layer may round its inputs on a scale of all inputs: zeros survive, unless weights move."""

import pytest
import torch
from torch import nn

from lightning_prune import Pruner


def round_inputs(x):
    """Round on a scale of the largest input of a sample, as torchao does for dynamic int8."""
    scale = x.abs().amax(tuple(range(1, x.ndim)), keepdim=True).clamp(min=1e-6) / 127
    return (x / scale).round() * scale


class RoundedLinear(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(round_inputs(x), self.weight, self.bias)


class RoundedConvolution(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(round_inputs(x), self.weight, self.bias)


class CenteredLinear(nn.Linear):
    """The weight is moved before it is used, as in BitNet; so zeros do not survive."""

    def forward(self, x):
        return nn.functional.linear(round_inputs(x), self.weight - self.weight.mean(), self.bias)


def select(layer):
    model = nn.Sequential(layer, nn.Linear(8, 4))
    pruner = Pruner(sparsity=0.5)
    pruner.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=4)
    return pruner


@pytest.mark.parametrize(
    "layer",
    [
        RoundedLinear(16, 8),
        RoundedLinear(16, 8, bias=False),
        RoundedConvolution(6, 8, 3),
        RoundedConvolution(8, 8, 3, groups=8),
    ],
    ids=["Linear", "without bias", "convolution", "depthwise"],
)
def test_a_layer_that_rounds_on_a_scale_of_all_inputs_is_pruned(layer):
    assert "0.weight" in select(layer).masks


def test_a_layer_that_also_moves_the_weight_stays_dense():
    assert select(CenteredLinear(16, 8)).dense["0.weight"] == "zeros do not survive CenteredLinear"
