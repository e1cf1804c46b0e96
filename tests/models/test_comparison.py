import math

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from lightning_prune.models.calls import make_call
from lightning_prune.models.comparison import Reference, largest_difference, relative_difference

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("expected", "found", "difference"),
    [
        ([4.0, -2.0], [4.0, -1.0], 0.25),
        ([4.0, NAN], [3.0, NAN], 0.25),
        ([NAN, NAN], [NAN, NAN], 0.0),
        ([4.0, NAN], [4.0, 1.0], INF),
        ([4.0, 1.0], [4.0, NAN], INF),
        ([4.0, INF], [3.0, INF], 0.25),
        ([INF, -INF], [INF, -INF], 0.0),
        ([4.0, INF], [4.0, -INF], INF),
        ([4.0, INF], [4.0, 9.0], INF),
        ([4.0, 9.0], [4.0, INF], INF),
        ([0.0, 0.0], [0.0, -0.0], 0.0),
        ([0.0, 0.0], [0.0, 1e-9], INF),
        ([], [], 0.0),
        ([1, 2, 3, 4], [1, 2, 3, 9], 0.25),
        ([True, False], [True, True], 0.5),
        ([3 + 4j], [3 + 3j], 0.2),
    ],
)
@pytest.mark.parametrize("scale", [1, 2])
def test_the_difference_is_relative_to_the_largest_magnitude(expected, found, difference, scale):
    expected, found = torch.tensor(expected), torch.tensor(found)
    if expected.is_floating_point():
        expected, found = scale * expected, scale * found
    assert relative_difference(expected, found) == pytest.approx(difference)


def test_half_precision_does_not_overflow():
    expected, found = torch.tensor([6e4]).half(), torch.tensor([-6e4]).half()
    assert relative_difference(expected, found) == 2.0


def test_another_shape_is_infinitely_far():
    assert relative_difference(torch.zeros(2, 1), torch.zeros(2)) == INF


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5),
    st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=5, max_size=5),
)
def test_no_difference_is_nan_or_negative(expected, found):
    expected = torch.tensor(expected, dtype=torch.double)
    found = torch.tensor(found[: len(expected)], dtype=torch.double)
    assert relative_difference(expected, found) >= 0
    assert relative_difference(found, expected) >= 0
    assert relative_difference(found, found) == 0


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([torch.zeros(2)], r"need outputs of the shapes \[\[2\], \[3\]\], got \[\[2\]\]"),
        ([torch.zeros(2), torch.zeros(4)], r"need outputs of the shapes .* got \[\[2\], \[4\]\]"),
    ],
)
def test_other_outputs_are_refused(found, message):
    with pytest.raises(ValueError, match=message):
        largest_difference([torch.zeros(2), torch.zeros(3)], found)


class Noisy(nn.Module):
    """It draws numbers, drops some, and counts its calls in a buffer."""

    def __init__(self):
        super().__init__()
        self.layer, self.dropout = nn.Linear(4, 3), nn.Dropout()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.dropout(self.layer(x)) + torch.rand_like(x[:, :3]) * self.calls


def test_a_module_with_dropout_and_random_numbers_equals_a_copy():
    module = Noisy()
    reference = Reference(module, make_call(module, torch.randn(2, 4)), batches=3)
    assert reference.difference(module) == 0.0
    assert module.calls == 0
    assert module.training
    with torch.no_grad():
        module.layer.weight[0, 0] += 1.0
    assert reference.difference(module) > 1e-3


def test_nan_in_the_same_places_is_no_difference():
    class Masked(nn.Linear):
        def forward(self, x):
            return super().forward(x).masked_fill(torch.tensor([True, False]), NAN)

    module = Masked(4, 2)
    reference = Reference(module, make_call(module, torch.randn(2, 4)), batches=1)
    assert reference.difference(module) == 0.0
