"""Channels that are pruned meet whatever the engine does for every pattern."""

import copy

import pytest
import torch
from torch import nn

from lightning_prune import (
    ChannelPattern,
    Criterion,
    GlobalAllocation,
    LAMPAllocation,
    MagnitudeCriterion,
    PolynomialSchedule,
    Sparsity,
    TaylorCriterion,
    UniformAllocation,
)
from tests.conftest import answers
from tests.engine.channels import AT_ONCE, STEPS, Net, Two, pruned, start, train
from tests.hooks import hooks

pytestmark = pytest.mark.usefixtures("traced_once")


@pytest.mark.parametrize(
    ("criterion", "allocation"),
    [(criterion, UniformAllocation) for criterion in answers(Criterion)]
    + [(MagnitudeCriterion, GlobalAllocation), (TaylorCriterion, LAMPAllocation)],
)
def test_a_run_resumed_after_any_step_equals_the_uninterrupted_one(criterion, allocation):
    recipe = {
        "criterion": criterion(),
        "allocation": allocation(),
        "schedule": PolynomialSchedule(end=1.0),
        "pattern": ChannelPattern(round_to=3),
    }
    model = Net()
    optimizer, pruner = start(model, **recipe)
    states, counts = [], []

    def save():
        states.append(
            copy.deepcopy([model.state_dict(), optimizer.state_dict(), pruner.state_dict()])
        )

        counts.append([group.kept for group in pruner.groups])

    train(model, optimizer, pruner, check=save)
    assert len({tuple(count) for count in counts}) > 3
    for step, (weights, optimizers, state) in enumerate(states, 1):
        again = Net(seed=1)
        again.load_state_dict(weights)
        its_optimizer, its_pruner = start(again, state=state, **recipe)
        its_optimizer.load_state_dict(optimizers)
        assert [group.kept for group in its_pruner.groups] == counts[step - 1]
        train(again, its_optimizer, its_pruner, STEPS - step, first=step)
        for name, value in model.state_dict().items():
            assert torch.equal(value, again.state_dict()[name]), (step, name)
        assert its_pruner.masks.keys() == pruner.masks.keys()
        assert all(torch.equal(mask, pruner.masks[n]) for n, mask in its_pruner.masks.items())


class Counting(MagnitudeCriterion):
    """Counts how often a tensor is scored."""

    calls = 0

    def score(self, tensor, state):
        Counting.calls += 1
        return super().score(tensor, state)


def test_what_is_kept_by_rounding_up_is_not_ranked_again():
    model = Two()
    schedule = PolynomialSchedule(begin=0, end=1, every=0.01)
    optimizer, pruner = start(model, criterion=Counting(), schedule=schedule, sparsity=0.75)
    calls = []

    def check():
        calls.append((pruner.groups[0].kept, Counting.calls))

    train(model, optimizer, pruner, check=check)
    reached = [count for kept, count in calls if kept == 8]  # at last 4 are due
    assert len(reached) > 2
    assert len(set(reached)) == 1


def test_a_pool_that_keeps_more_by_rounding_is_not_ranked_again_after_a_resume():
    recipe = {"allocation": GlobalAllocation(), "schedule": AT_ONCE, "criterion": Counting()}
    model = Net()
    optimizer, pruner = start(model, sparsity=0.9, **recipe)
    train(model, optimizer, pruner, 1)
    assert [group.kept for group in pruner.groups] == [8, 8, 8]  # of which 8 are due
    before = Counting.calls
    optimizer, again = start(model, sparsity=0.9, state=pruner.state_dict(), **recipe)
    train(model, optimizer, again, 1)
    assert Counting.calls == before
    assert again.updates == 0


def test_a_higher_target_goes_on_from_the_present_masks():
    model = Net()
    optimizer, pruner = start(model, schedule=AT_ONCE, sparsity=0.25)
    train(model, optimizer, pruner, 1)
    assert [group.kept for group in pruner.groups] == [16, 16, 32]  # 12, 18 and 30 are due
    optimizer, again = start(model, schedule=AT_ONCE, state=pruner.state_dict())
    train(model, optimizer, again, 1)
    assert [group.kept for group in again.groups] == [8, 16, 16]
    for name, mask in again.masks.items():
        assert not (mask & ~pruner.masks[name]).any()


def test_the_pruned_model_is_the_plain_one_with_zeros():
    model, names = Net(), list(Net().state_dict())
    optimizer, pruner = start(model)
    train(model, optimizer, pruner)
    pruner.detach()
    plain = Net(seed=1)
    plain.load_state_dict(model.state_dict())
    assert list(model.state_dict()) == names
    for name, mask in pruner.masks.items():
        assert not plain.get_parameter(name).detach()[~mask].any()
        assert not torch.signbit(plain.get_parameter(name).detach()[~mask]).any()
    assert not hooks(optimizer)
    assert pruner.sparsity == 0.5


def test_a_foreign_hand_in_a_bias_is_found_at_the_end():
    model = Net()
    optimizer, pruner = start(model)
    train(model, optimizer, pruner)
    model[1].bias.data += 1
    with pytest.raises(RuntimeError, match=r"be 0, got 8 others in '1\.bias'"):
        pruner.detach()
    assert not model[1].bias[~pruner.masks["1.bias"]].any()


def test_a_copy_is_pruned_in_every_place_too():
    model = Net()
    average = copy.deepcopy(model)
    optimizer, pruner = start(model)
    train(model, optimizer, pruner)
    pruner.mask_copy(average)
    assert all(not average.get_parameter(n)[~mask].any() for n, mask in pruner.masks.items())


def test_channels_that_are_zero_everywhere_can_be_kept_so():
    model = Net()
    for layer in (0, 1):
        model[layer].weight.data[:5] = 0
        model[layer].bias.data[:5] = 0
    model[0].weight.data[5:8] = 0  # their norm still makes something
    model[3].weight.data[:, :4] = 0
    optimizer, pruner = start(model, keep_zeros=True, sparsity=0.0)
    assert [group.kept for group in pruner.groups] == [12, 24, 40]  # the fifth is still read
    train(model, optimizer, pruner)
    assert [group.kept for group in pruner.groups] == [12, 24, 40]
    assert not model[1].bias[:4].any()
    pruner.detach()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    with pytest.raises(ValueError, match=r"keep_zeros=True, got none in '0\.weight'"):
        pruner.attach(model, optimizer, steps=STEPS)


def test_zeros_that_are_kept_are_not_rounded_away():
    model = Net()
    for layer in (0, 1):
        model[layer].weight.data[:3] = 0
        model[layer].bias.data[:3] = 0
    model[3].weight.data[:, :3] = 0
    counts = []
    optimizer, pruner = start(model, keep_zeros=True)
    train(model, optimizer, pruner, check=lambda: counts.append(pruner.groups[0].kept))
    assert counts[0] == 13
    assert counts[-1] == 8


def test_what_is_pruned_in_a_compiled_model_has_plain_names():
    model = Net()
    compiled = torch.compile(model, backend="eager")
    compiled.example_input_array = model.example_input_array
    optimizer, pruner = start(compiled)
    train(compiled, optimizer, pruner)
    assert [group.name for group in pruner.groups] == ["0.weight", "3.weight", "7.weight"]
    assert pruner.sparsity == 0.5


def test_sparsity_of_the_metric_counts_the_zeros_of_the_weights():
    model = Two()
    _, pruner = pruned(model)
    pruner.detach()
    metric = Sparsity()
    metric.update(model)
    assert float(metric.compute()) == 0.5
    schedule = PolynomialSchedule()
    assert schedule(1.0) == 1.0
