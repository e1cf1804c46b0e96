"""A user's own answers get the treatment of ours: the engine asks what a class can do."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_prune import (
    Criterion,
    OneShotSchedule,
    Pattern,
    Pruner,
    UniformAllocation,
    UnstructuredPattern,
)
from lightning_prune.engine.block_groups import BlockGroup
from lightning_prune.engine.channel_groups import ChannelGroup
from lightning_prune.engine.weight_groups import WeightGroup
from tests.engine.training import EXAMPLE, OPTIMIZERS, Net, train

AT_ONCE = OneShotSchedule(end=0, unit="step")


def keep_best(scores: Tensor, keep: int) -> Tensor:
    order = scores.flatten().argsort(descending=True, stable=True)
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[order[:keep]] = True
    return mask.view(scores.shape)


@dataclass(frozen=True, kw_only=True)
class OwnChannels(Pattern):
    """Any number of channels."""

    couples_tensors: ClassVar[bool] = True

    def __call__(self, scores, keep):
        return keep_best(scores, keep)


@dataclass(frozen=True, kw_only=True)
class OwnWeights(Pattern):
    """Single weights, ranked by the engine."""

    ranks_freely: ClassVar[bool] = True

    def __call__(self, scores, keep):
        raise AssertionError("a free pattern is not called")


@dataclass(frozen=True, kw_only=True)
class OwnRows(Pattern):
    """Whole rows."""

    def to_atoms(self, entries):
        return entries.flatten(1).mean(1)

    def to_entries(self, atoms, shape):
        return atoms.view(-1, *[1] * (len(shape) - 1)).expand(shape)

    def __call__(self, scores, keep):
        return keep_best(scores, keep)

    def default_allocation(self):
        return UniformAllocation()


def prune(pattern, criterion=None):
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner(sparsity=0.5, schedule=AT_ONCE, pattern=pattern, criterion=criterion)
    pruner.attach(model, optimizer, example=EXAMPLE)
    train(model, optimizer, pruner, steps=1)
    pruner.detach()
    return pruner


def test_channels_of_a_pattern_of_ones_own_are_coupled():
    pruner = prune(OwnChannels())
    assert {type(group) for group in pruner.groups} == {ChannelGroup}
    assert [group.kept for group in pruner.groups] == [4, 10]  # ours would keep 8 of each


def test_a_free_pattern_of_ones_own_is_ranked_in_pieces_like_ours():
    own, ours = prune(OwnWeights()), prune(UnstructuredPattern())
    assert {type(group) for group in own.groups} == {WeightGroup}
    assert own.recipe.chosen_allocation == ours.recipe.chosen_allocation
    assert all(torch.equal(own.masks[name], mask) for name, mask in ours.masks.items())


def test_a_bounded_pattern_of_ones_own_chooses_its_allocation():
    pruner = prune(OwnRows())
    assert {type(group) for group in pruner.groups} == {BlockGroup}
    rows = [int(mask.flatten(1).any(1).sum()) for mask in pruner.masks.values()]
    assert rows == [4, 10, 2]


def test_a_criterion_of_ones_own_can_be_read_in_place():
    @dataclass(frozen=True, kw_only=True)
    class Squares(Criterion):
        works_on_shards: ClassVar[bool] = True

        def source(self, tensor, state):
            return tensor.weights

        def transform(self, values):
            return values.square()

        def score(self, tensor, state):
            raise AssertionError("a source is read instead")

    own, ours = prune(UnstructuredPattern(), Squares()), prune(UnstructuredPattern())
    assert all(torch.equal(own.masks[name], mask) for name, mask in ours.masks.items())
