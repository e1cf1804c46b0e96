"""A growing penalty: the atoms that go next shrink before they go, and only these."""

import copy
import io

import pytest
import torch
from torch import nn

from lightning_prune import (
    BlockPattern,
    ChannelPattern,
    GlobalAllocation,
    GrowingPenalty,
    MacsBudget,
    NMPattern,
    OneShotSchedule,
    PolynomialSchedule,
    Pruner,
    TaylorCriterion,
    UnstructuredPattern,
)
from tests.engine.channels import Net as Convolutions
from tests.engine.training import OPTIMIZERS, Net, train

AT_8 = OneShotSchedule(end=8, unit="step")


def start(net, *, largest=1.0, ahead=0.5, rate=0.1, **recipe):
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    penalty = GrowingPenalty(largest=largest, ahead=ahead)
    pruner = Pruner(penalty=penalty, **{"schedule": AT_8, **recipe})
    pruner.attach(net, optimizer, steps=20)
    return optimizer, pruner


def step(net, optimizer, pruner, number=1):
    for _ in range(number):
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        pruner.before_step(optimizer)
        optimizer.step()


def test_it_multiplies_the_weights_that_go_by_one_minus_rate_times_strength():
    net = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[4.0, 3.0, 2.0, 1.0]]))
    optimizer, pruner = start(net, sparsity=0.5)
    step(net, optimizer, pruner, 4)  # the penalty starts at step 4
    assert net.weight.tolist() == [[4.0, 3.0, 2.0, 1.0]]
    factor = 1.0
    for grown in (0.1, 0.35, 0.6, 0.85):
        step(net, optimizer, pruner)
        factor *= 1 - 0.1 * grown
        torch.testing.assert_close(net.weight.detach(), torch.tensor([[4, 3, 2 * factor, factor]]))
    step(net, optimizer, pruner)
    assert net.weight.tolist() == [[4.0, 3.0, 0.0, 0.0]]


def test_a_channel_shrinks_in_all_tensors_where_it_lies():
    net = Convolutions()
    before = copy.deepcopy(net.state_dict())
    optimizer, pruner = start(net, sparsity=0.5, pattern=ChannelPattern(), ahead=1.0)
    step(net, optimizer, pruner, 8)
    after = copy.deepcopy(net.state_dict())
    step(net, optimizer, pruner)
    gone = pruner.groups[0].alive().logical_not()
    assert 0 < gone.sum() < len(gone)
    left = after["0.weight"][gone] / before["0.weight"][gone]
    for name in ("0.bias", "1.weight"):
        torch.testing.assert_close(after[name][gone] / before[name][gone], left[:, 0, 0, 0])
    both = after["3.weight"][:, gone] / before["3.weight"][:, gone]
    alive = pruner.groups[1].alive()
    torch.testing.assert_close(
        both[alive], left[:, 0, 0, 0].view(1, -1, 1, 1).expand_as(both[alive])
    )
    assert (left < 1).all()
    assert torch.equal(after["0.weight"][~gone], before["0.weight"][~gone])


PATTERNS = [
    UnstructuredPattern(),
    UnstructuredPattern(per_row=True),
    BlockPattern(shape=(2, 2)),
    NMPattern(),
    ChannelPattern(round_to=1),
]


def run(steps=16, *, first=0, net=None, optimizer=None, state=None, kind="adamw", **recipe):
    net = net or Net()
    optimizer = optimizer or OPTIMIZERS[kind](net.parameters())
    schedule = PolynomialSchedule(begin=2, end=12, every=2, unit="step")
    penalty = GrowingPenalty(largest=5.0, ahead=0.5)
    pruner = Pruner(**{"sparsity": 0.75, "schedule": schedule, "penalty": penalty, **recipe})
    if state:
        pruner.load_state_dict(state)
    pruner.attach(net, optimizer, steps=16, example=torch.zeros(2, 4, 8))
    train(net, optimizer, pruner, steps=steps, first=first)
    return net, optimizer, pruner


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_it_changes_the_weights_and_lands_as_exactly_as_without(pattern, kind):
    net, _, pruner = run(pattern=pattern, kind=kind)
    plain, _, without = run(pattern=pattern, kind=kind, penalty=None)
    assert pruner.sparsity == without.sparsity
    kept = [int(group.alive().sum()) for group in pruner.groups]
    assert kept == [int(group.alive().sum()) for group in without.groups]
    assert not torch.equal(net[2].weight, plain[2].weight)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("stop", [1, 5, 6, 11])
def test_a_resumed_training_goes_on_bit_for_bit(pattern, stop):
    whole, _, _ = run(pattern=pattern)
    net, optimizer, pruner = run(stop, pattern=pattern)
    file = io.BytesIO()
    torch.save(pruner.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    pruner.detach(completed=False)
    net, _, _ = run(
        16 - stop, first=stop, net=net, optimizer=optimizer, state=state, pattern=pattern
    )
    for name, value in whole.state_dict().items():
        assert torch.equal(value, net.state_dict()[name]), name


@pytest.mark.parametrize("allocation", [None, GlobalAllocation(per="macs")], ids=str)
@pytest.mark.parametrize("criterion", [None, TaylorCriterion()], ids=str)
def test_a_budget_is_met_as_without_it(allocation, criterion):
    recipe = {
        "sparsity": None,
        "budget": MacsBudget(keep=0.5),
        "pattern": ChannelPattern(round_to=1),
        "allocation": allocation,
        "criterion": criterion,
    }
    _, _, pruner = run(**recipe)
    assert 0.4 < pruner.spending[0].share <= 0.5


def test_frozen_weights_do_not_shrink():
    net = Net()
    net[2].requires_grad_(False)
    frozen = net[2].weight.clone()
    targets = {"*": 0.75, "2.weight": 0.75}
    _, _, pruner = run(net=net, sparsity=targets)
    kept = pruner.masks["2.weight"]
    assert torch.equal(net[2].weight[kept], frozen[kept])


def test_an_atom_that_is_chosen_no_longer_shrinks_no_longer():
    net = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[4.0, 3.0, 2.0, 1.0]]))
    optimizer, pruner = start(net, sparsity=0.25, ahead=1.0)
    step(net, optimizer, pruner, 4)
    assert net.weight[0, 3] < 1
    with torch.no_grad():
        net.weight[0, 3] = 5.0
    step(net, optimizer, pruner, 3)
    assert net.weight[0, 3] == 5
    assert net.weight[0, 2] < 2
    step(net, optimizer, pruner, 2)
    assert net.weight.tolist() == [[4.0, 3.0, 0.0, 5.0]]


def test_clipped_gradients_and_the_gradients_of_a_criterion_are_those_of_the_loss():
    net, plain = Net(), Net()
    for each, penalty in ((net, GrowingPenalty(ahead=1.0)), (plain, None)):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        pruner = Pruner(schedule=AT_8, penalty=penalty)
        pruner.attach(each, optimizer, steps=20)
        train(each, optimizer, pruner, steps=1)
    for one, other in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_a_step_outside_training_does_not_shrink():
    net = nn.Linear(4, 1, bias=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    pruner = Pruner(sparsity=0.5, schedule=AT_8, penalty=GrowingPenalty(ahead=1.0))
    pruner.attach(net, optimizer, steps=20, is_trial_step=lambda optimizer: True)
    step(net, optimizer, pruner, 3)
    before = net.weight.clone()
    net.weight.grad = torch.zeros_like(net.weight)
    optimizer.step()  # as a learning-rate finder does
    assert torch.equal(net.weight, before)
