"""Couplings where values are written, shared or computed, and what tracing needs."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_prune.channels.coupling import couple
from tests.channels.coupled_groups import Calling, groups_of, places
from tests.coupled_models import (
    MODELS,
    Headed,
    example,
    plain,
)


def test_what_is_written_in_place_goes_on_with_the_result():
    def in_place(x):
        x.relu_()
        x += 1.0
        return x

    assert groups_of(Calling(in_place))["first.weight"].why_dense is None


def test_what_is_written_through_a_view_stays_dense():
    def through_a_view(x):
        x[:, :4] *= 2.0
        return x

    reason = groups_of(Calling(through_a_view))["first.weight"].why_dense
    assert reason == "is written through a view"


def test_what_was_seen_before_it_was_written_stays_dense():
    def stale(x):
        rows = x.view(2, 8, -1)
        x += 1.0
        return x + rows.sum(1).view(2, 1, 6, 6)

    reason = groups_of(Calling(stale))["first.weight"].why_dense
    assert reason == "is written through a view"


def test_what_runs_without_gradients_is_not_followed():
    def without_gradients(x):
        with torch.no_grad():
            return x * x.mean(1, keepdim=True)

    reason = groups_of(Calling(without_gradients))["first.weight"].why_dense
    assert reason == "passes through wrap_with_set_grad_enabled"


def test_a_weight_that_is_also_a_value_stays_dense():
    class Regularised(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) + self.weight.mean()

    module = Headed(nn.Sequential(nn.Conv2d(3, 8, 3), Regularised(8, 6, 3)), 6)
    groups = groups_of(module)
    assert groups["body.0.weight"].why_dense == "mean over channels"
    assert groups["body.1.weight"].why_dense == "is used as a value"


def test_words_are_looked_up_by_number_wherever_they_are_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.last = nn.Embedding(11, 8), nn.Linear(11, 2)
            self.out = nn.Linear(8, 11, bias=False)
            self.out.weight = self.words.weight

        def forward(self, tokens):
            return self.last(self.out(self.words(tokens).relu()))

    coupling = couple(Tied(), torch.randint(0, 11, (2, 5)))
    words = next(g for g in coupling.groups if ("words.weight", 0) in places(g))
    assert words.why_dense == "is picked by number"


def test_a_buffer_does_not_make_a_channel_zero():
    class Frozen(nn.BatchNorm2d):
        def forward(self, x):
            scale, shift = self.running_var, self.running_mean
            x = functional.batch_norm(x, shift, scale, scale, shift)
            return x + x.sum(1, keepdim=True)

    groups = groups_of(Headed(nn.Sequential(nn.Conv2d(3, 8, 3), Frozen(8)), 8))
    assert groups["body.0.weight"].why_dense == "sum over channels"


def test_weights_that_are_computed_stay_dense():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            return functional.conv2d(x, self.weight - self.weight.mean(), self.bias)

    groups = groups_of(Headed(nn.Sequential(nn.Conv2d(3, 8, 3), Standardised(8, 8, 3)), 8))
    assert groups["body.0.weight"].why_dense == "passes through conv2d"


def test_tied_layers_share_their_channels():
    shared = nn.Conv2d(8, 8, 3, padding=1)
    module = Headed(nn.Sequential(nn.Conv2d(3, 8, 3), shared, nn.ReLU(), shared), 8)
    group = groups_of(module)["body.0.weight"]
    assert group.producers == ("body.0.weight", "body.1.weight")


def test_tracing_leaves_everything_as_it_is():
    module = MODELS["residual"]().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    modes = [child.training for child in module.modules()]
    state = torch.get_rng_state()
    couple(module, example())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert [child.training for child in module.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_a_batch_of_one_can_be_traced():
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    assert groups_of(module, example()[:1])["1.weight"].why_dense is None


def test_named_and_several_arguments_are_passed():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(5, 8), nn.Linear(8, 2)

        def forward(self, x, *, y):
            return self.c(self.a(x) + self.b(y))

    batch = {"x": torch.randn(2, 4), "y": torch.randn(2, 5)}
    assert groups_of(Two(), batch)["a.weight"].producers == ("a.weight", "b.weight")


def test_what_depends_on_values_is_refused_with_a_remedy():
    with pytest.raises(ValueError, match=r"need a forward that torch\.export can trace.*example"):
        couple(Calling(lambda x: x if x.sum() > 0 else -x), example())


def test_a_wrong_example_is_refused_with_a_remedy():
    with pytest.raises(ValueError, match=r"give an example that forward takes"):
        couple(plain(), torch.randn(2, 7))
