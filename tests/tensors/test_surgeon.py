"""Repaired weights are those of the least-squares problem, and masks keep as many as asked."""

import pytest
import torch

from lightning_prune.tensors.moments import Moments
from lightning_prune.tensors.ranking import choose_best
from lightning_prune.tensors.surgeon import Surgery


def make_problem(groups=2, rows=5, columns=8, samples=60, seed=0):
    """Return weights, dense inputs, and correlated inputs after pruning."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    dense = draw(groups, samples, columns) @ draw(groups, columns, columns)
    return draw(groups, rows, columns), dense, dense + 0.3 * draw(groups, samples, columns) + 0.5


def add(inputs, dense):
    moments = Moments.empty(len(inputs), inputs.shape[2], torch.device("cpu"))
    for part in range(0, inputs.shape[1], 25):
        moments.add(inputs[:, part : part + 25], dense[:, part : part + 25])
    return moments


def operate(weights, moments, damping=0.01):
    return Surgery.of(weights, moments.products, moments.crossed, damping)


def solve(weights, inputs, dense, mask, damping, *, has_bias=False):
    """Return the weights of the problem, row by row, by stacking the damping as more samples."""
    found = torch.zeros_like(weights)
    for group in range(len(weights)):
        x, d = inputs[group], dense[group]
        if has_bias:
            x, d = x - x.mean(0), d - d.mean(0)
        strength = (damping * x.square().sum(0).mean()).sqrt()
        identity = strength * torch.eye(x.shape[1], dtype=x.dtype)
        for row, wanted in enumerate(weights[group]):
            kept = mask[group, row]
            below = torch.cat([x[:, kept], identity[:, kept]])
            right = torch.cat([d @ wanted, identity @ wanted])
            found[group, row, kept] = torch.linalg.lstsq(below, right[:, None]).solution[:, 0]
    return found


@pytest.mark.parametrize("damping", [0.01, 1.0])
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_weights_of_a_mask_solve_the_least_squares_problem(damping, has_bias):
    weights, dense, inputs = make_problem()
    mask = torch.rand(weights.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    moments = add(inputs, dense)
    surgery = operate(weights, moments.center() if has_bias else moments, damping)
    found = surgery.refit(surgery.aim, mask, rounds=20)
    wanted = solve(weights, inputs, dense, mask, damping, has_bias=has_bias)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-6)
    assert (found[~mask] == 0).all()


def test_the_bias_keeps_the_mean_of_the_outputs():
    weights, dense, inputs = make_problem()
    moments, pruned = add(inputs, dense), weights * (weights > 0)
    shift = moments.find_shift(weights, pruned)
    outputs = inputs @ pruned.mT + shift[:, None, :]
    assert torch.allclose(outputs.mean(1), (dense @ weights.mT).mean(1))


def test_where_nothing_went_the_weights_stay():
    weights, dense, _ = make_problem()
    surgery = operate(weights, add(dense, dense))
    everything = torch.ones_like(weights, dtype=torch.bool)
    assert torch.allclose(surgery.refit(weights, everything, rounds=3), weights)
    assert surgery.measure_error(weights) == pytest.approx(0, abs=1e-12)


def test_a_layer_without_inputs_keeps_weights_as_they_are():
    weights = make_problem(groups=1)[0]
    nothing = torch.zeros(1, 9, 8, dtype=torch.float64)
    surgery = operate(weights, add(nothing, nothing))
    pruned, mask = surgery.choose(lambda scores: choose_best(scores, 12))
    assert mask.sum() == 12
    assert torch.allclose(surgery.refit(pruned, mask, rounds=5), weights * mask)


@pytest.mark.parametrize("keep", [8, 40])
def test_a_searched_mask_keeps_the_number_and_loses_less_than_the_best_weights(keep):
    weights, dense, _ = make_problem()
    surgery = operate(weights, add(dense, dense))
    pruned, mask = surgery.choose(lambda scores: choose_best(scores, keep))
    assert mask.sum() == keep
    norms = dense.square().sum(1).sqrt()[:, None, :]
    by_wanda = choose_best(weights.abs() * norms, keep)
    alone = surgery.measure_error(surgery.refit(weights, by_wanda, rounds=20))
    assert surgery.measure_error(surgery.refit(pruned, mask, rounds=20)) < alone


def test_each_round_lowers_the_error():
    weights, dense, inputs = make_problem(columns=24, samples=40)
    surgery = operate(weights, add(inputs, dense))
    mask = choose_best(weights.abs(), 60)
    errors = [surgery.measure_error(surgery.refit(weights, mask, n)) for n in range(12)]
    assert errors == sorted(errors, reverse=True)
