"""Recipes, plans and models that a Pruner refuses."""

import math

import pytest
import torch
from torch import nn

from lightning_prune import (
    BlockPattern,
    ERKAllocation,
    LAMPAllocation,
    NMPattern,
    OneShotSchedule,
    Pruner,
    RandomCriterion,
    UnstructuredPattern,
)
from tests.engine.training import OPTIMIZERS, STEPS, Net


def test_a_step_without_the_pruner_is_an_error():
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner()
    pruner.attach(model, optimizer, steps=STEPS)
    model(torch.randn(8, 4, 8)).sum().backward()
    with pytest.raises(RuntimeError, match=r"need before_step\(optimizer\)"):
        optimizer.step()
    with pytest.raises(ValueError, match="one of the optimizers given to attach"):
        pruner.before_step(OPTIMIZERS["sgd"](model.parameters()))
    with pytest.raises(RuntimeError, match="got one that is attached"):
        pruner.attach(model, optimizer, steps=STEPS)
    with pytest.raises(RuntimeError, match="got an attached Pruner"):
        pruner.forget_training()
    pruner.detach(completed=False)
    pruner.forget_training()
    assert pruner.masks == {}


def test_a_step_without_the_pruner_by_learning_rates_of_zero_counts_as_none():
    model = Net()
    optimizer = torch.optim.AdamW([{"params": [p]} for p in model.parameters()], lr=0.0)
    pruner = Pruner()
    pruner.attach(model, optimizer, steps=STEPS)
    model(torch.randn(8, 4, 8)).sum().backward()
    optimizer.step()  # as torch does it, to make an empty state for a distributed checkpoint
    assert pruner.steps == [0]
    optimizer.param_groups[-1]["lr"] = 0.1
    with pytest.raises(RuntimeError, match=r"need before_step\(optimizer\)"):
        optimizer.step()


def test_a_refused_model_leaves_the_pruner_free_for_another():
    model = Net()
    nn.init.zeros_(model[2].weight)
    pruner = Pruner(keep_zeros=True)
    with pytest.raises(ValueError, match="keep_zeros=True"):
        pruner.attach(model, OPTIMIZERS["sgd"](model.parameters()), steps=STEPS)
    model = Net()
    pruner.attach(model, OPTIMIZERS["sgd"](model.parameters()), steps=STEPS)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_not_finite_name_the_tensor(value):
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner(schedule=OneShotSchedule(end=0))
    pruner.attach(model, optimizer, steps=STEPS)
    model[2].weight.detach()[0, 0] = value
    with pytest.raises(ValueError, match=r"need finite scores, got 1 .* for '2.weight' at step 0"):
        pruner.before_step(optimizer)


class Coupled(UnstructuredPattern):
    couples_tensors = True


class Signed(RandomCriterion):
    has_signed_scores = True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 1.5}, "need 0 <= sparsity <= 1, got sparsity=1.5"),
        ({"sparsity": -0.1}, "need 0 <= sparsity <= 1, got sparsity=-0.1"),
        ({"sparsity": math.nan}, "need 0 <= sparsity <= 1, got sparsity=nan"),
        ({"sparsity": {"*": 2}}, r"need 0 <= sparsity <= 1, got sparsity=\{'\*': 2\}"),
        ({"sparsity": {}}, "need at least one glob"),
        ({"sparsity": 0.3, "pattern": NMPattern()}, "at least 1 - n/m = 0.5 for 2:4, got .*=0.3"),
        (
            {"allocation": ERKAllocation(), "pattern": Coupled()},
            "inside single tensors for ERKAllocation, got pattern=Coupled",
        ),
        (
            {"allocation": LAMPAllocation(), "criterion": Signed()},
            "scores >= 0 for LAMPAllocation, got criterion=Signed",
        ),
    ],
)
def test_a_bad_recipe_is_refused_by_the_constructor(arguments, message):
    with pytest.raises(ValueError, match=message):
        Pruner(**arguments)


@pytest.mark.parametrize(
    ("pruner", "plan", "message"),
    [
        (Pruner(), {}, "need steps with unit='fraction', got steps=None"),
        (
            Pruner(schedule=OneShotSchedule(end=1, unit="epoch")),
            {"steps": 10},
            "need steps_per_epoch with unit='epoch'",
        ),
        (
            Pruner(schedule=OneShotSchedule(end=11, unit="step")),
            {"steps": 10},
            "need end within the 10 planned steps, got end=11",
        ),
        (
            Pruner(sparsity=0.75, pattern=NMPattern(m=8)),
            {"steps": 10},
            r"multiples of m=8.*in '0.weight' of shape \(8, 4, 4\)[^$]*\n  \"0.weight\": null",
        ),
        (
            Pruner(sparsity=0.5, pattern=BlockPattern(shape=(16, 1))),
            {"steps": 9},
            '"0.weight": null',
        ),
        (Pruner(sparsity={"nothing": 0.5}), {"steps": 10}, "got sparsity={'nothing': 0.5}"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(pruner, plan, message):
    model = Net()
    with pytest.raises(ValueError, match=message):
        pruner.attach(model, OPTIMIZERS["sgd"](model.parameters()), **plan)


def test_a_model_without_prunable_weights_is_refused():
    model = nn.Sequential(nn.Embedding(3, 4), nn.LayerNorm(4))
    with pytest.raises(
        ValueError, match=r"at least one prunable weight, got none: '0.weight' \(emb"
    ):
        Pruner().attach(model, OPTIMIZERS["sgd"](model.parameters()), steps=1)
