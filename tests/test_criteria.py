import pytest
import torch
from torch import nn

from lightning_prune import Criterion, MagnitudeCriterion, PrunedTensor, RandomCriterion
from tests.conftest import answers


def tensor(name="weight", step=0, shape=(6, 5), dtype=torch.float32):
    parameter = nn.Parameter(torch.randn(shape).to(dtype))
    parameter.grad = torch.randn(shape).to(dtype)
    return PrunedTensor(
        name=name,
        parameter=parameter,
        owner=nn.Linear(5, 6),
        sparsity=0.5,
        glob="*",
        optimizer=0,
        output_axis=0,
        mask=torch.ones(shape, dtype=torch.bool),
        step=step,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", answers(Criterion))
def test_scores_are_finite_repeatable_and_shaped_as_the_tensor(kind, dtype):
    criterion, pruned = kind(), tensor(dtype=dtype)
    state = criterion.observe(pruned, {})
    scores = criterion.score(pruned, state)
    assert scores.shape == pruned.parameter.shape
    assert scores.isfinite().all()
    assert criterion.signed or (scores >= 0).all()
    assert torch.equal(scores, criterion.score(pruned, state))
    assert not scores.requires_grad


@pytest.mark.parametrize("kind", answers(Criterion))
def test_scores_leave_weights_and_the_global_random_state_alone(kind):
    pruned = tensor()
    before, state = pruned.parameter.clone(), torch.get_rng_state()
    first = kind().score(pruned, kind().observe(pruned, {}))
    torch.manual_seed(123)  # as on another rank
    assert torch.equal(first, kind().score(pruned, kind().observe(pruned, {})))
    torch.manual_seed(0)
    assert torch.equal(pruned.parameter, before)
    torch.set_rng_state(state)
    kind().score(pruned, {})
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", answers(Criterion))
def test_observations_are_tensors(kind):
    state = kind().observe(tensor(), {})
    assert all(isinstance(value, torch.Tensor) for value in state.values())


def test_magnitude_is_the_absolute_value():
    pruned = tensor()
    assert torch.equal(MagnitudeCriterion().score(pruned, {}), pruned.parameter.abs())


def test_random_scores_depend_on_seed_step_and_name():
    scores = [
        RandomCriterion(seed=seed).score(tensor(name, step), {})
        for seed, name, step in [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]
    ]
    assert all(not torch.equal(scores[0], other) for other in scores[1:])
    assert 0 <= scores[0].min() <= scores[0].max() < 1
