"""Pruned weights that other code brings back are found while training, and the user decides."""

import pytest
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from lightning_prune import OneShotSchedule, PolynomialSchedule, Pruner
from tests.engine.zero_keeping import STEPS, assert_zeros, backward, make_model, train

NAME = "'0.weight' at step 4"


def through_data(model, optimizer):
    model[0].weight.data.fill_(1.0)


def into_statistics(model, optimizer):
    optimizer.state[model[0].weight]["exp_avg"].fill_(1.0)


def by_a_vector(model, optimizer):
    vector_to_parameters(parameters_to_vector(model.parameters()) + 1, model.parameters())


def in_place(model, optimizer):
    with torch.no_grad():
        model[0].weight.fill_(1.0)


WRITERS = {
    through_data: r"written through \.data",
    into_statistics: r"the 'exp_avg' of AdamW is not 0 there either",
    by_a_vector: r"the data was replaced, as vector_to_parameters does",
    in_place: r"written in place since the last step",
}


def start(schedule, **answers):
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    pruner = Pruner(sparsity=0.5, schedule=schedule, **answers)
    pruner.attach(model, optimizer, steps=STEPS)
    return model, optimizer, pruner


def bring_back(write, model, optimizer, pruner):
    """Train for four steps, and write before the last; the step itself masks a visible write."""
    train(model, optimizer, pruner, steps=3)
    write(model, optimizer)
    train(model, optimizer, pruner, first=3)
    if write is in_place:
        assert_zeros(pruner)
        write(model, optimizer)


RAMP = PolynomialSchedule(begin=0, end=8, every=4, unit="step", initial=0.5)


@pytest.mark.parametrize(("write", "trace"), WRITERS.items(), ids=[w.__name__ for w in WRITERS])
def test_revived_weights_are_found_at_the_next_due_point_with_a_trace_of_the_writer(write, trace):
    model, optimizer, pruner = start(RAMP)
    bring_back(write, model, optimizer, pruner)
    backward(model, optimizer, 4)
    kept = [tensor.kept for tensor in pruner.tensors]
    for _ in range(2):  # nothing changes, so the step is refused again
        with pytest.raises(RuntimeError, match=rf"to be 0, got \d+ .*{NAME} \({trace}"):
            pruner.before_step(optimizer)
        assert [tensor.kept for tensor in pruner.tensors] == kept
    pruner.detach(completed=False)
    assert_zeros(pruner)


@pytest.mark.parametrize("write", WRITERS, ids=[w.__name__ for w in WRITERS])
def test_with_a_warning_training_goes_on_with_masked_weights(write):
    model, optimizer, pruner = start(RAMP, on_revival="warn")
    bring_back(write, model, optimizer, pruner)
    with pytest.warns(UserWarning, match=rf"got \d+ others in {NAME}.*they are masked again"):
        train(model, optimizer, pruner, first=4)
    for step in range(5, STEPS):
        train(model, optimizer, pruner, first=step)
        assert_zeros(pruner)
    pruner.detach()
    assert pruner.sparsity == 0.5


@pytest.mark.parametrize("on_revival", ["error", "warn"])
def test_after_the_ramp_a_call_finds_revived_weights(on_revival):
    model, optimizer, pruner = start(OneShotSchedule(end=0), on_revival=on_revival)
    train(model, optimizer, pruner, steps=4)
    pruner.check_zeros()
    through_data(model, optimizer)
    if on_revival == "error":
        with pytest.raises(RuntimeError, match=f"others in {NAME}.*set on_revival='warn'"):
            pruner.check_zeros()
        return
    with pytest.warns(UserWarning, match=f"others in {NAME}"):
        pruner.check_zeros()
    assert_zeros(pruner)


def test_with_a_warning_the_end_warns_too():
    model, optimizer, pruner = start(OneShotSchedule(end=0), on_revival="warn")
    train(model, optimizer, pruner, steps=4)
    through_data(model, optimizer)
    with pytest.warns(UserWarning, match=f"others in {NAME}"):
        pruner.detach()
    assert_zeros(pruner)


def test_another_reaction_is_refused():
    with pytest.raises(
        ValueError, match="on_revival as 'error' or 'warn', got on_revival='ignore'"
    ):
        Pruner(on_revival="ignore")
