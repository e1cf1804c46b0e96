"""Zeros in a parameter are tried in the weight that the module makes of it."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from lightning_prune.models.prunable import (
    find_parameters,
    judge_zeros,
    prunable_weights,
    why_unusual,
)

OLD = pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")


class Shift(nn.Module):
    def forward(self, x):
        return x + 1


class LearnedShift(nn.Module):
    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x + self.shift


class Symmetric(nn.Module):
    def forward(self, x):
        return x.triu() + x.triu(1).T


class NoiseInTraining(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x) if self.training else x


class SoftThreshold(nn.Module):
    def forward(self, x):
        return x.sign() * (x.abs() - 0.1).relu()


class Normalize(nn.Module):
    def forward(self, x):
        return nn.functional.normalize(x, dim=1)  # 0 / epsilon is 0


class Product(nn.Module):
    def forward(self, left, right):
        return left * right

    def right_inverse(self, weight):
        return weight, torch.ones_like(weight)


class Balance(nn.Module):
    """Divides rows and columns by norms: a weight of each row is not enough."""

    def forward(self, x):
        return x / x.norm(dim=0, keepdim=True) / x.norm(dim=1, keepdim=True)


def chain(*steps, layer=None):
    layer = layer or nn.Linear(5, 5)
    for step in steps:
        parametrize.register_parametrization(layer, "weight", step)
    return layer


def judge(module):
    """Return why zeros are lost, and the rows, by name, of parameters named after weights."""
    effects = {
        name: judge_zeros(places)
        for name, (_, places) in find_parameters(module).items()
        if "weight" in places[0].attribute
    }
    return {
        name.removeprefix("parametrizations.weight."): (effect.why_lost, effect.row_axes)
        for name, effect in effects.items()
    }


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: chain(Shift()), "zeros do not survive Shift"),
        (
            lambda: parametrizations.spectral_norm(chain(Shift())),
            "zeros do not survive Shift, _SpectralNorm",
        ),
        (
            lambda: chain(Shift(), layer=parametrizations.spectral_norm(nn.Linear(5, 5))),
            "zeros do not survive _SpectralNorm, Shift",
        ),
        (lambda: chain(LearnedShift()), "zeros do not survive LearnedShift"),
        (lambda: chain(Symmetric()), "zeros do not survive Symmetric"),
        (lambda: chain(NoiseInTraining()), "zeros do not survive NoiseInTraining"),
        (lambda: chain(SoftThreshold()), "SoftThreshold adds zeros"),
        (lambda: chain(Balance()), "zeros do not survive Balance"),
        (
            lambda: parametrizations.orthogonal(nn.Linear(5, 5), orthogonal_map="cayley"),
            "zeros do not survive _Orthogonal",
        ),
        (lambda: chain(nn.Dropout(0.5)), None),
        (lambda: chain(Normalize()), None),
        (lambda: chain(nn.Tanh(), nn.Hardtanh()), None),
    ],
)
def test_zeros_are_judged_after_all_parametrizations_of_a_chain(make, expected):
    assert judge(make())["original"][0] == expected


class Standardized(nn.Conv2d):
    def forward(self, x):
        mean = self.weight.mean(dim=(1, 2, 3), keepdim=True)
        deviation = self.weight.std(dim=(1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / deviation
        return nn.functional.conv2d(x, weight, self.bias, self.stride, self.padding, 1, self.groups)


class Centered(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - weight.mean(), bias)


class Padded(nn.Conv1d):
    def forward(self, x):
        return super().forward(nn.functional.pad(x, (2, 2)))


class Scaled(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, self.weight / self.weight.norm(), self.bias)


class WithMask(nn.Linear):
    def forward(self, x, mask):
        return super().forward(x * mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Standardized(8, 4, 3), "zeros do not survive Standardized"),
        (lambda: Standardized(8, 4, 1, groups=2), "zeros do not survive Standardized"),
        (lambda: Standardized(4, 4, 3, groups=4), "zeros do not survive Standardized"),
        (lambda: Standardized(4, 8, (1, 3), groups=4), "zeros do not survive Standardized"),
        (lambda: Centered(8, 4, 3), "zeros do not survive Centered"),
        (lambda: Padded(8, 4, 3), None),
        (lambda: Padded(4, 8, 3, stride=2, dilation=2, groups=4), None),
        (lambda: Scaled(8, 4), None),
        (lambda: WithMask(8, 4), None),
    ],
    ids=[
        "standardized",
        "grouped",
        "depthwise",
        "depthwise and flat",
        "inside",
        "padded",
        "padded and depthwise",
        "scaled",
        "of two arguments",
    ],
)
def test_zeros_are_judged_in_a_layer_that_computes_another_weight_in_forward(make, reason, dtype):
    layer = make().to(dtype)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    calls, state = [], torch.get_rng_state()
    layer.register_forward_hook(lambda *_: calls.append(1))
    (parameter, places) = find_parameters(nn.Sequential(layer))["0.weight"]
    assert why_unusual(parameter, places) == reason
    assert not calls
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(layer.state_dict()[name], value) for name, value in before.items())


def test_a_parametrization_that_fails_in_a_trial_leaves_the_weight_dense():
    class NeedsPositive(nn.Module):
        def forward(self, x):
            if (x <= 0).any():
                raise ValueError("need positive values")
            return x

    layer = nn.Linear(5, 5)
    nn.init.ones_(layer.weight)
    why = judge(chain(NeedsPositive(), layer=layer))["original"][0]
    assert why == "NeedsPositive cannot be tried: need positive values"


@pytest.mark.parametrize(
    ("dim", "shape", "axes"),
    [(0, (4, 3, 2), (0,)), (1, (4, 3, 2), (1,)), (2, (4, 3, 2), (2,)), (None, (4, 3, 2), ())],
)
@OLD
@pytest.mark.parametrize("norm", [parametrizations.weight_norm, nn.utils.weight_norm])
def test_the_rows_of_a_weight_norm_are_those_whose_norm_divides(norm, dim, shape, axes):
    layer = nn.Conv1d(3, 4, 2)
    assert layer.weight.shape == shape
    magnitude, direction = judge(norm(layer, dim=dim)).values()
    assert magnitude[0].endswith("WeightNorm makes a weight of another shape")
    assert direction == (None, axes)


@OLD
@pytest.mark.parametrize("norm", [parametrizations.weight_norm, nn.utils.weight_norm])
def test_a_magnitude_is_known_at_any_name_of_the_weight(norm):
    lstm = norm(nn.LSTM(3, 4, bidirectional=True), "weight_hh_l0")
    prunable = [name for name, (why, _) in judge(lstm).items() if not why]
    assert [name.rpartition(".")[2] for name in prunable] == [
        *["weight_ih_l0", "weight_ih_l0_reverse", "weight_hh_l0_reverse"],
        "original1" if norm is parametrizations.weight_norm else "weight_hh_l0_v",
    ]


@OLD
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_a_spectral_norm_needs_a_weight_of_the_whole_tensor(norm, dtype):
    assert [*judge(norm(nn.Linear(6, 5)).to(dtype)).values()] == [(None, ())]


def test_of_two_parameters_that_make_a_weight_only_the_first_may_lose_entries():
    assert judge(chain(Product())) == {
        "original0": (None, None),
        "original1": ("the same weight is pruned in 'parametrizations.weight.original0'", None),
    }


def test_a_tied_parameter_has_the_rows_of_all_places():
    left = parametrizations.weight_norm(nn.Linear(5, 5))
    right = parametrizations.weight_norm(nn.Linear(5, 5), dim=1)
    right.parametrizations.weight.original1 = left.parametrizations.weight.original1
    why = "rows along several axes must keep a weight"
    net = nn.Sequential(left, right)
    assert judge(net)["0.parametrizations.weight.original1"][0] == why
    assert why_unusual(*find_parameters(net)["0.parametrizations.weight.original1"]) == why


def test_a_chain_over_two_parameters_has_the_rows_of_all_steps():
    layer = parametrizations.spectral_norm(parametrizations.weight_norm(nn.Linear(6, 5)))
    assert judge(layer)["original1"] == (None, (0,))


@OLD
@pytest.mark.parametrize(
    "wrap",
    [
        lambda: chain(nn.Dropout(0.5), layer=parametrizations.spectral_norm(nn.Linear(5, 5))),
        lambda: nn.utils.spectral_norm(nn.Linear(5, 5)),
        lambda: nn.utils.weight_norm(nn.LSTM(3, 4), "weight_hh_l0"),
        lambda: prune.l1_unstructured(nn.Linear(5, 5), "weight", 0.5),
    ],
)
def test_a_trial_changes_nothing(wrap):
    module = wrap().train()
    module.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    attributes = {name: id(value) for name, value in vars(module).items()}
    flat = list(map(id, getattr(module, "_flat_weights", [])))
    generator = torch.get_rng_state()
    find_parameters(module)
    assert all(torch.equal(before[name], each) for name, each in module.state_dict().items())
    assert attributes == {name: id(value) for name, value in vars(module).items()}
    assert flat == list(map(id, getattr(module, "_flat_weights", [])))
    assert torch.equal(generator, torch.get_rng_state())
    assert all(part.training for part in module.modules())
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_of_a_layer_under_torchs_pruning_the_zeros_of_the_weight_count():
    layer = prune.l1_unstructured(nn.Linear(4, 5), "weight", 15)
    assert judge(layer)["weight_orig"][0] == "L1Unstructured adds zeros"
    assert int((prunable_weights(layer)["weight_orig"] == 0).sum()) == 15
    prune.random_unstructured(layer, "weight", 2)
    assert judge(layer)["weight_orig"][0] == "PruningContainer adds zeros"
    assert int((prunable_weights(layer)["weight_orig"] == 0).sum()) == 17
    prune.remove(layer, "weight")
    assert judge(layer) == {"weight": (None, None)}
