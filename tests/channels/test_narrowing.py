"""Narrower copies of a model, without zeros in the model."""

import pytest
import torch
from torch import nn

from lightning_prune import ChannelPattern, shrink
from lightning_prune.channels.narrowing import Narrower
from lightning_prune.engine.channel_selection import select_channels
from tests.engine.channels import Net, Residual
from tests.engine.training import OPTIMIZERS


def select(model, example=None, scope="all"):
    pattern = ChannelPattern(round_to=8, scope=scope)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    return select_channels(model, [optimizer], {"*": 1.0}, pattern, example).groups


def make_narrower(model, groups, example=None):
    return Narrower(model, example, {group.name: group.places for group in groups})


def describe(module):
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("kind", [Net, Residual])
def test_a_narrow_copy_has_the_shapes_of_the_shrunk_model(kind):
    model = kind()
    groups = select(model)
    kept = {group.name: 8 for group in groups}
    narrow = make_narrower(model, groups).narrow(kept)
    for group in groups:
        group.keep(torch.arange(group.total) < 8)
        for member in group.members:
            with torch.no_grad():
                member.weights.mul_(member.mask.kept)
    assert describe(narrow) == describe(shrink(model))
    assert narrow(model.example_input_array).shape == model(model.example_input_array).shape


def test_a_single_group_is_narrow_and_the_others_stay():
    model = Net()
    narrow = make_narrower(model, select(model)).narrow({"3.weight": 8})
    shapes = describe(narrow)
    assert shapes["3.weight"] == (8, 16, 3, 3)
    assert (shapes["4.running_mean"], shapes["7.weight"]) == ((8,), (40, 8 * 16))
    assert describe(make_narrower(model, select(model)).narrow({})) == describe(model)


def test_the_model_does_not_change():
    model = Net().train()
    groups = select(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.get_rng_state()
    make_narrower(model, groups).narrow({group.name: 8 for group in groups})
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(part.training for part in model.modules())
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


class Heads(nn.Module):
    """Attention whose code holds the number of heads."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(32, 32) for _ in range(3))
        self.output = nn.Linear(32, 32)
        self.heads = 4

    def forward(self, x):
        split = (
            layer(x).view(*x.shape[:2], self.heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(*split)
        return self.output(mixed.transpose(1, 2).flatten(2))


def test_a_number_of_heads_in_the_code_changes_with_the_heads():
    model, example = Heads(), torch.randn(2, 5, 32)
    groups = select(model, example)
    narrow = make_narrower(model, groups, example).narrow({groups[0].name: 3})
    assert (narrow.heads, narrow.query.out_features, model.heads) == (3, 24, 4)
    assert narrow(example).shape == (2, 5, 32)
