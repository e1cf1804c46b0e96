"""Which groups share a number to keep."""

import pytest
import torch
from torch import nn

from lightning_prune import (
    BlockPattern,
    ChannelPattern,
    GlobalAllocation,
    NMPattern,
    OneShotSchedule,
    Pruner,
    UnstructuredPattern,
)
from tests import coupled_models
from tests.coupled_models import Attention, FusedAttention, Headed, ResidualBlock, convolution
from tests.engine.training import EXAMPLE, Net, train

LIKE_WITH_LIKE = GlobalAllocation(isomorphic=True)
EVERY_CHANNEL = ChannelPattern(round_to=1, scope="all")


class Blocks(nn.Module):
    """Two transformer blocks, with heads of four and 24 hidden units."""

    def __init__(self, kind):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.attention = nn.ModuleList(kind() for _ in range(2))
        self.up = nn.ModuleList(nn.Linear(16, 24) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(24, 16) for _ in range(2))
        self.head = nn.Linear(16, 3)

    def forward(self, images):
        x = self.patches(images).flatten(2).transpose(1, 2)
        for attention, up, down in zip(self.attention, self.up, self.down, strict=True):
            x = x + attention(x)
            x = x + down(up(x).relu())
        return self.head(x.mean(1))


def attached(model, allocation=LIKE_WITH_LIKE, **answers):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    example = EXAMPLE if isinstance(model, Net) else coupled_models.example()
    pruner = Pruner(schedule=OneShotSchedule(end=0), allocation=allocation, **answers)
    pruner.attach(model, optimizer, steps=1, example=example)
    return optimizer, pruner


def group_by_kind(pruner):
    kinds = {}
    for group in pruner.groups:
        kinds.setdefault(group.kind, []).append(group.name)
    return sorted(kinds.values())


@pytest.mark.parametrize(("kind", "heads"), [(FusedAttention, "qkv"), (Attention, "query")])
def test_heads_feed_forward_layers_and_the_residual_stream_are_three_kinds(kind, heads):
    _, pruner = attached(Blocks(kind), pattern=EVERY_CHANNEL)
    assert group_by_kind(pruner) == [
        [f"attention.0.{heads}.weight", f"attention.1.{heads}.weight"],
        ["patches.weight"],
        ["up.0.weight", "up.1.weight"],
    ]


def test_inner_channels_of_residual_blocks_are_a_kind_and_each_stream_is_alone():
    blocks = (ResidualBlock(8, 8), ResidualBlock(8, 16))
    model = Headed(nn.Sequential(convolution(3, 8), *blocks), 16)
    _, pruner = attached(model, pattern=EVERY_CHANNEL)
    assert group_by_kind(pruner) == [
        ["body.0.0.weight"],
        ["body.1.first.0.weight", "body.2.first.0.weight"],
        ["body.2.second.0.weight"],
    ]


def test_tensors_of_the_same_class_of_layer_are_a_kind():
    _, pruner = attached(Net())
    assert group_by_kind(pruner) == [["0.weight"], ["2.weight", "4.weight"]]


@pytest.mark.parametrize(
    "pattern", [UnstructuredPattern(), BlockPattern(shape=(2, 1)), NMPattern(), EVERY_CHANNEL]
)
def test_each_kind_has_the_same_sparsity_with_any_pattern(pattern):
    model = Net()
    model[0].weight.data *= 1e-3  # alone in a ranking of all, nearly nothing of it would stay
    optimizer, pruner = attached(model, pattern=pattern, sparsity=0.5)
    train(model, optimizer, pruner, steps=1)
    by_kind = {}
    for group in pruner.groups:
        by_kind.setdefault(group.kind, []).append(group)
    assert len(by_kind) == 2
    for groups in by_kind.values():
        kept, total = (sum(getattr(g, side) for g in groups) for side in ("kept", "size"))
        assert kept == total / 2


def test_without_isomorphic_all_kinds_are_ranked_together():
    model = Net()
    model[0].weight.data *= 1e-3
    optimizer, pruner = attached(model, GlobalAllocation(), sparsity=0.5)
    train(model, optimizer, pruner, steps=1)
    assert pruner.groups[0].kept == 1
