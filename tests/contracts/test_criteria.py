"""The contract of every criterion."""

import dataclasses

import pytest
import torch

from lightning_prune import Criterion, OneShotSchedule, Pruner
from tests.conftest import answers_under_contract
from tests.engine.training import OPTIMIZERS, Net, train
from tests.recipe.tensors import make_tensor, observe


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", answers_under_contract(Criterion))
def test_scores_are_finite_repeatable_and_shaped_as_the_tensor(kind, dtype):
    criterion, pruned = kind(), make_tensor(dtype=dtype)
    state = observe(criterion, pruned)
    scores = criterion.score(pruned, state)
    assert scores.shape == pruned.parameter.shape
    assert scores.isfinite().all()
    assert criterion.has_signed_scores or (scores >= 0).all()
    assert torch.equal(scores, criterion.score(pruned, state))
    assert not scores.requires_grad


@pytest.mark.parametrize("kind", answers_under_contract(Criterion))
def test_scores_leave_weights_and_the_global_random_state_alone(kind):
    pruned = make_tensor()
    before, state = pruned.parameter.clone(), torch.get_rng_state()
    first = kind().score(pruned, observe(kind(), pruned))
    torch.manual_seed(123)  # as on another rank
    assert torch.equal(first, kind().score(pruned, observe(kind(), pruned)))
    torch.manual_seed(0)
    assert torch.equal(pruned.parameter, before)
    torch.set_rng_state(state)
    kind().score(pruned, observe(kind(), pruned))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", answers_under_contract(Criterion))
def test_observations_are_tensors(kind):
    state = observe(kind(), make_tensor())
    assert all(isinstance(value, torch.Tensor) for value in state.values())


@pytest.mark.parametrize("kind", answers_under_contract(Criterion))
def test_a_source_agrees_with_the_score(kind):
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    criterion = kind()
    pruner = Pruner(criterion=criterion, schedule=OneShotSchedule(end=5, unit="step"))
    pruner.attach(model, optimizer, steps=6)
    train(model, optimizer, pruner, steps=2)
    for tensor in pruner.tensors:
        source = criterion.source(tensor, tensor.state)
        if source is not None:
            score = criterion.score(tensor, tensor.state)
            assert torch.equal(criterion.transform(source), score)
    pruner.detach(completed=False)


@pytest.mark.parametrize("kind", answers_under_contract(Criterion))
def test_a_criterion_is_a_value(kind):
    assert dataclasses.is_dataclass(kind)
    assert kind() == kind()


@pytest.mark.parametrize("kind", answers_under_contract(Criterion))
def test_a_criterion_says_whether_it_reads_gradients(kind):
    pruned = make_tensor()
    pruned.parameter.grad = None
    if kind.reads_gradients:
        with pytest.raises(ValueError, match="need a gradient"):
            kind().score(pruned, observe(kind(), pruned))
    else:
        kind().score(pruned, observe(kind(), pruned))
