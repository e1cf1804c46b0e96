import pytest
import torch
from torch import nn

from lightning_prune.models.generic_weights import fill_with_generic_weights


def filled(module):
    fill_with_generic_weights(module)
    return module


def test_generic_weights_are_the_same_each_time_and_disturb_no_generator():
    first, second = nn.Linear(3, 4), nn.Linear(3, 4)
    state = torch.get_rng_state()
    assert torch.equal(filled(first).weight, filled(second).weight)
    assert torch.equal(first.bias, second.bias)
    assert torch.equal(torch.get_rng_state(), state)


LAYERS = {
    "linear": (lambda: nn.Linear(200, 100), (64, 200)),
    "convolution": (lambda: nn.Conv2d(20, 100, 3), (8, 20, 9, 9)),
    "grouped": (lambda: nn.Conv2d(100, 100, 3, groups=4), (8, 100, 9, 9)),
    "transposed": (lambda: nn.ConvTranspose2d(100, 40, 1), (8, 100, 9, 9)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_of_generic_weights_doubles_the_variance(name):
    make, shape = LAYERS[name]
    layer = filled(make())
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert layer(inputs).var().item() == pytest.approx(2.0, rel=0.15)


class Hiding(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.full((1, 8, 1), 1e-6))
        self.scale, self.exponent = nn.Parameter(torch.zeros(())), nn.Parameter(torch.tensor([3.0]))
        self.norm = nn.BatchNorm1d(8)
        self.register_buffer("window", torch.arange(8.0))
        self.experts = nn.Parameter(torch.zeros(4, 50, 60))
        self.empty, self.whole = (
            nn.Parameter(torch.zeros(0, 3, 3)),
            nn.Parameter(torch.arange(4), requires_grad=False),
        )


def test_nothing_is_hidden_and_numbers_keep_their_meaning():
    module = Hiding()
    nn.init.zeros_(module.norm.weight)
    filled(module)
    gains = torch.cat([module.gain.flatten(), module.norm.weight, module.norm.running_var])
    assert bool(((gains >= 0.5) & (gains <= 1.5)).all())
    assert module.norm.running_mean.abs().max() < 0.5
    assert bool((module.norm.running_mean != 0).all())
    assert module.scale.item() == pytest.approx(0.7)
    assert module.exponent.item() == 3.0
    assert module.experts.std().item() == pytest.approx((2 / 50) ** 0.5, rel=0.1)
    assert torch.equal(module.window, torch.arange(8.0))
    assert torch.equal(module.whole, torch.arange(4))


def test_a_shared_weight_is_filled_once():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    expected = filled(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))[0].weight
    second.weight = first.weight
    assert torch.equal(filled(nn.Sequential(first, second))[0].weight, expected)
