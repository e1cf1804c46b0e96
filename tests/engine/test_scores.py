"""Each tensor is scored once an update, and what is reported is counted from the masks."""

from collections import Counter
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from lightning_prune import (
    Allocation,
    BlockPattern,
    ChannelPattern,
    Criterion,
    ERKAllocation,
    GradientCriterion,
    MagnitudeCriterion,
    NMPattern,
    OneShotSchedule,
    Pattern,
    PolynomialSchedule,
    Pruner,
    RandomCriterion,
    Regrow,
    UnstructuredPattern,
)
from lightning_prune.engine.scores import ScoreBook, TensorScores
from tests.conftest import answers
from tests.engine.training import EXAMPLE, OPTIMIZERS, Net, train

RAMP = PolynomialSchedule(begin=0, end=3, every=1, unit="step", initial=0.3)
PATTERNS = [kind for kind in answers(Pattern) if not kind.spans_branches]  # there are none
PATTERNS = [*PATTERNS, lambda: UnstructuredPattern(per_row=True)]


@dataclass(frozen=True, kw_only=True)
class Noise(Criterion):
    """Draws other scores at every call, and counts the calls by tensor and step."""

    calls: Counter = field(default_factory=Counter, compare=False)

    def score(self, tensor, state):
        self.calls[tensor.name, tensor.step] += 1
        return torch.rand_like(tensor.weights)


def prune(criterion, allocation=None, pattern=None, **answers):
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    recipe = {"allocation": allocation, "pattern": pattern, "sparsity": 0.75, "schedule": RAMP}
    pruner = Pruner(criterion=criterion, **{**recipe, **answers})
    pruner.attach(model, optimizer, steps=6, example=EXAMPLE)
    train(model, optimizer, pruner, steps=6)
    pruner.detach()
    return model, pruner


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("allocation", answers(Allocation))
def test_each_tensor_is_scored_once_an_update(allocation, pattern, traced_once):
    if allocation is ERKAllocation and pattern is ChannelPattern:
        pytest.skip("the two clash")
    noise = Noise()
    _, pruner = prune(noise, allocation(), pattern())
    scored = {tensor.name for tensor in pruner.tensors if tensor.is_scored}
    assert {name for name, _ in noise.calls} == scored
    assert set(noise.calls.values()) == {1}


@pytest.mark.parametrize("pattern", [UnstructuredPattern, NMPattern, BlockPattern])
@pytest.mark.parametrize("allocation", answers(Allocation))
def test_random_scores_land_on_target_and_the_zeros_are_those_reported(allocation, pattern):
    _, pruner = prune(Noise(), allocation(), pattern())
    zeros = sum(int((tensor.parameter == 0).sum()) for tensor in pruner.tensors)
    weights = sum(tensor.total for tensor in pruner.tensors)
    assert zeros == weights - round(weights * 0.25)
    assert pruner.sparsity == zeros / weights
    for tensor in pruner.tensors:
        assert tensor.kept == int(tensor.mask.kept.sum())


@pytest.mark.parametrize("same", [True, False])
def test_pruning_and_regrowth_of_one_update_share_their_scores(same):
    noise = Noise()
    regrow = Regrow(
        criterion=noise if same else RandomCriterion(),
        schedule=OneShotSchedule(end=2, unit="step"),
        first=None,
    )
    prune(noise, regrow=regrow)
    assert set(noise.calls.values()) == {1}


def test_a_regrowth_of_nothing_asks_for_no_scores():
    noise = Noise()
    regrow = Regrow(criterion=noise, schedule=OneShotSchedule(end=5, unit="step"), first=None)
    prune(MagnitudeCriterion(), regrow=regrow)
    assert not noise.calls  # at its end, the share is 0


@pytest.mark.parametrize("kind", [MagnitudeCriterion, GradientCriterion])
def test_scores_with_a_source_hold_nothing(kind):
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner()
    pruner.attach(model, optimizer, steps=2)
    model(torch.randn(2, 4, 8)).sum().backward()
    (first, *_) = pruner.tensors
    scores = TensorScores.of(first, kind())
    assert not scores.is_held
    first.parameter.detach().mul_(2)
    if kind is MagnitudeCriterion:
        assert torch.equal(scores.whole, first.weights.abs())
    pruner.detach(completed=False)


def test_a_book_lets_scores_go_once_nothing_else_will_read_them():
    model = nn.Linear(4, 4)
    pruner = Pruner()
    pruner.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=2)
    noise, tensors = Noise(), pruner.tensors
    book = ScoreBook(["weight", "weight"])
    book.read(tensors, noise)
    book.release(tensors)
    book.read(tensors, noise)
    assert noise.calls.total() == 1
    book.release(tensors)
    book.read(tensors, noise)
    assert noise.calls.total() == 2
    pruner.detach(completed=False)
