"""Removal is tried where it can be seen, and only what is shown to matter changes."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_prune import ChannelPattern, OneShotSchedule, Pruner, shrink
from lightning_prune.channels.coupling import couple
from lightning_prune.channels.shrink import find_unremovable
from tests.zero_channels import assert_same, zeroed


def prune(module, x, scope="inner"):
    """Prune half of the channels in a step."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    pruner = Pruner(
        sparsity=0.5,
        schedule=OneShotSchedule(end=0, unit="step"),
        pattern=ChannelPattern(round_to=1, scope=scope),
    )
    pruner.attach(module, optimizer, example=x)
    (module(x) - 1).square().mean().backward()
    pruner.before_step(optimizer)
    optimizer.step()
    pruner.detach()
    return [group.name for group in pruner.groups]


class Scaled(nn.Module):
    """It divides by a width, so the channels of `first` cannot be removed."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.gain, self.scale = nn.Parameter(torch.ones(16)), nn.Parameter(torch.ones(()))

    def forward(self, x):
        x = self.first(x).relu()
        x = self.second(x / x.shape[-1] ** 0.5).relu()
        return self.head(x * self.gain * self.scale)


def scaled_gain(value):
    def change(module):
        nn.init.constant_(module.gain, value)

    return change


HIDING = {
    "nothing": lambda module: None,
    "a head of zeros": lambda module: nn.init.zeros_(module.head.weight),
    "a last gain of zeros": scaled_gain(0.0),
    "a layer scale": scaled_gain(1e-9),
    "a scale of zero": lambda module: nn.init.zeros_(module.scale),
}


@pytest.mark.parametrize("name", HIDING)
def test_no_weights_hide_that_channels_cannot_be_removed(name):
    torch.manual_seed(0)
    module, x = Scaled(), torch.randn(8, 6)
    HIDING[name](module)
    assert prune(module, x) == ["second.weight"]
    smaller = shrink(module, x)
    assert (smaller.first.out_features, smaller.second.out_features) == (16, 8)
    assert smaller.zero_channels_left == {}


class Attention(nn.Module):
    """Attention with a number of heads, and other numbers that are equal by accident."""

    def __init__(self, norm=None):
        super().__init__()
        self.heads = self.classes = self.longest = self.log_every = 4
        self.norm = norm or nn.Identity()
        self.first, self.project = nn.Linear(16, 16), nn.Linear(16, 48)
        self.last, self.head = nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.attend(x, self.heads)

    def attend(self, x, heads):
        x = self.norm(self.first(x).transpose(1, 2)).transpose(1, 2).relu()
        pieces = self.project(x).view(*x.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*pieces)
        return self.head(self.last(mixed.transpose(1, 2).flatten(2)).tanh())


def test_only_numbers_that_are_shown_to_matter_change():
    torch.manual_seed(0)
    module, x = Attention(), torch.randn(2, 5, 16)
    smaller = shrink(zeroed(module, x), x)
    numbers = [getattr(smaller, name) for name in ("heads", "classes", "longest", "log_every")]
    assert numbers == [2, 4, 4, 4]
    assert_same(module, smaller, torch.randn(3, 7, 16))


def test_a_number_that_only_training_shows_changes():
    class Auxiliary(Attention):
        def forward(self, x):
            return self.attend(x, self.classes if self.training else self.heads)

    torch.manual_seed(0)
    module, x = Auxiliary(), torch.randn(2, 5, 16)
    smaller = shrink(zeroed(module, x), x)
    assert (smaller.heads, smaller.classes, smaller.longest) == (2, 2, 4)
    torch.testing.assert_close(smaller.train()(x), module.train()(x))


def test_the_loss_of_a_module_stays_where_a_number_of_the_loss_equals_the_heads():
    class Learner(Attention):
        def loss(self, x, labels):
            targets = functional.one_hot(labels, self.classes)[..., :3].double()
            return functional.mse_loss(self(x), targets) / self.classes

    torch.manual_seed(0)
    module, x = Learner().double(), torch.randn(2, 5, 16).double()
    smaller = shrink(zeroed(module, x), x)
    labels = torch.tensor([[0, 1, 2, 3, 0], [3, 2, 1, 0, 1]])
    assert smaller.heads == 2
    torch.testing.assert_close(smaller.loss(x, labels), module.loss(x, labels))


def test_nearly_uniform_attention_does_not_hide_a_wrong_number_of_heads():
    torch.manual_seed(0)
    module, x = Attention(), torch.randn(2, 5, 16)
    with torch.no_grad():
        module.project.weight[:32] *= 1e-6
        module.project.bias[:32] = 0.0
    smaller = shrink(zeroed(module, x), x)
    assert (smaller.heads, smaller.project.out_features) == (2, 24)


class GroupNormalized(nn.Module):
    """It calls the function with a number of groups, as diffusion networks do."""

    def __init__(self):
        super().__init__()
        self.groups = 4
        self.weight, self.bias = nn.Parameter(torch.ones(16)), nn.Parameter(torch.zeros(16))

    def forward(self, x):
        return functional.group_norm(x, self.groups, self.weight, self.bias)


NORMS = {
    "batch": lambda: nn.BatchNorm1d(16),
    "group": lambda: nn.GroupNorm(4, 16),
    "group without gains": lambda: nn.GroupNorm(4, 16, affine=False),
    "group function": GroupNormalized,
    "instance": lambda: nn.InstanceNorm1d(16),
    "batch without gains": lambda: nn.BatchNorm1d(16, affine=False),
}


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("name", NORMS)
def test_heads_beside_a_normalization_with_as_many_groups_are_removed(name, blocks):
    torch.manual_seed(0)
    x = torch.randn(4, 7, 16)
    module = nn.Sequential(*(Attention(NORMS[name]()) for _ in range(blocks)))
    for block in module:
        block.head = nn.Identity()
    module.append(nn.Linear(16, 3))
    names = prune(module, x, scope="all")
    pruned = [n.rpartition(".")[0] for n in names]
    assert pruned == [f"{i}.{part}" for i in range(blocks) for part in ("first", "project", "last")]
    smaller = shrink(module, x)
    assert all(block.heads == 2 for block in smaller[:-1])
    assert smaller.zero_channels_left == {}
    assert_same(module, smaller, torch.randn(2, 5, 16))
    if "group" in name:
        norm = smaller[0].norm
        assert (norm.groups if name == "group function" else norm.num_groups) == 2


class OneOfTwo(nn.Module):
    """Either width may shrink, but not both."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        first = self.first(x).relu()
        second = self.second(first).relu()
        third = self.third(second).relu()
        is_wrong = first.shape[-1] < 8 and third.shape[-1] < 8
        return self.head(third) * (2 if is_wrong else 1)


def test_what_is_accepted_can_be_removed_together():
    torch.manual_seed(0)
    module, x = OneOfTwo(), torch.randn(4, 8)
    assert prune(module, x) == ["first.weight", "second.weight"]
    assert shrink(module, x).zero_channels_left == {}
    module = zeroed(OneOfTwo(), x)
    with pytest.warns(UserWarning, match=r"'third\.weight' \(outputs differ by"):
        smaller = shrink(module, x)
    widths = [layer.out_features for layer in (smaller.first, smaller.second, smaller.third)]
    assert widths == [4, 4, 8]
    assert_same(module, smaller, x)


class TwoWidths(nn.Module):
    """Two numbers are equal, but the widths that they count lose different numbers of channels."""

    def __init__(self):
        super().__init__()
        self.wide, self.slim = 8, 8
        self.first, self.second, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(x).relu().view(-1, self.wide)
        return self.head(self.second(x).tanh().view(-1, self.slim))


def test_equal_numbers_that_count_different_widths_get_different_values():
    torch.manual_seed(0)
    module, x = TwoWidths(), torch.randn(4, 4)
    with torch.no_grad():
        for layer, reader, zeros in (
            (module.first, module.second, 3),
            (module.second, module.head, 5),
        ):
            for rows in (layer.weight, layer.bias, reader.weight.T):
                rows[:zeros] = 0.0
    smaller = shrink(module, x)
    assert (smaller.wide, smaller.slim) == (5, 3)
    assert_same(module, smaller, x)


def test_of_many_blocks_only_those_that_fail_are_refused():
    class Block(nn.Module):
        def __init__(self, is_wrong):
            super().__init__()
            self.up, self.down, self.is_wrong = nn.Linear(8, 12), nn.Linear(12, 8), is_wrong

        def forward(self, x):
            hidden = self.up(x).relu()
            return x + self.down(hidden * (12 / hidden.shape[-1] if self.is_wrong else 1))

    torch.manual_seed(0)
    module = nn.Sequential(*(Block(i in (1, 4)) for i in range(6)), nn.Linear(8, 3))
    x = torch.randn(2, 8)
    coupling = couple(module, x)
    free = [i for i, group in enumerate(coupling.groups) if group.why_dense is None]
    refused = find_unremovable(module, x, coupling, free)
    names = [coupling.groups[i].producers[0] for i in free if i in refused]
    assert names == ["1.up.weight", "4.up.weight"]


PICKY = {"positive numbers": torch.log, "a positive definite matrix": torch.linalg.cholesky}


@pytest.mark.parametrize("name", PICKY)
def test_code_that_needs_special_weights_is_tried_with_the_weights_of_the_module(name):
    class Picky(Scaled):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))

        def forward(self, x):
            return super().forward(x) + PICKY[name](self.table).sum()

    torch.manual_seed(0)
    module, x = Picky(), torch.randn(8, 6)
    assert prune(module, x) == ["second.weight"]
    assert shrink(module, x).zero_channels_left == {}
