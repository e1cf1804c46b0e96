"""Statistics that are not plain floating-point tensors: zeroed by themselves, or left alone."""

import pytest
import torch
from torch import nn

from lightning_prune import OneShotSchedule, Pruner
from tests.engine.foreign_optimizers import (
    Codes,
    Eighth,
    LowRank,
    Momentum,
    NoZero,
    PlainCodes,
    Sealed,
)
from tests.engine.zero_keeping import (
    AT_ONCE,
    STEPS,
    Operations,
    assert_zeros,
    backward,
    make_model,
    train,
)

LATER = OneShotSchedule(end=3, unit="step")  # when all weights have statistics


def pruned_later(make):
    """Return a model with statistics of all weights, its optimizer and pruner, before pruning."""
    model = make_model()
    optimizer = make(list(model.parameters()))
    pruner = Pruner(sparsity=0.5, schedule=LATER)
    pruner.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, pruner, steps=3)
    return model, optimizer, pruner


@pytest.mark.works_with(
    "Precision and compilation",
    "statistics in codes, in tensor subclasses, in eight bits, or of other shapes",
)
@pytest.mark.parametrize(
    "make",
    [
        lambda p: Momentum(p, Codes),
        lambda p: Momentum(p, Sealed),
        lambda p: Momentum(p, NoZero),
        PlainCodes,
        LowRank,
        Eighth,
    ],
    ids=["codes", "sealed codes", "codes without zero", "plain codes", "low rank", "eight bits"],
)
def test_pruned_weights_are_zero_after_each_step_whatever_the_statistics_are(make):
    model, optimizer, pruner = pruned_later(make)
    for step in range(3, STEPS):
        train(model, optimizer, pruner, first=step)
        assert_zeros(pruner)
    pruner.detach()
    assert pruner.sparsity == 0.5


def prune_now(make):
    """Prune between two steps; return tensors and their statistics before and after."""
    model, optimizer, pruner = pruned_later(make)
    found = []
    for tensor in pruner.tensors:
        (value,) = optimizer.state[tensor.parameter].values()
        found.append((tensor, value, value.read() if isinstance(value, Codes) else value.clone()))
    backward(model, optimizer, 3)
    pruner.before_step(optimizer)
    assert pruner.sparsity == 0.5
    return found


def test_codes_are_zeroed_for_pruned_weights_and_the_others_stay():
    for tensor, codes, before in prune_now(lambda p: Momentum(p, Codes)):
        kept = tensor.mask.kept
        assert before[~kept].any()
        assert torch.equal(codes.read(), before.masked_fill(~kept, 0))


@pytest.mark.parametrize("kind", [Sealed, NoZero])
def test_codes_that_cannot_be_zeroed_stay(kind):
    for _, codes, before in prune_now(lambda p: Momentum(p, kind)):
        assert torch.equal(codes.read(), before)


def test_whole_numbers_stay_since_zero_may_be_the_code_of_another_number():
    for _, codes, before in prune_now(PlainCodes):
        assert torch.equal(codes, before)


def test_floats_of_eight_bits_are_zeroed_for_pruned_weights():
    for tensor, momentum, before in prune_now(Eighth):
        kept = tensor.mask.kept
        assert before.float()[~kept].any()
        assert torch.equal(momentum.float(), before.float().masked_fill(~kept, 0))


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_momentum_of_sparse_gradients_revives_nothing():
    model = nn.Sequential(nn.Embedding(10, 6, sparse=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner = Pruner(sparsity={"0": 0.5}, schedule=LATER)
    pruner.attach(model, optimizer, steps=STEPS)
    for step in range(STEPS):
        optimizer.zero_grad()
        model(torch.tensor([step, (step + 1) % 10, 3])).square().sum().backward()
        pruner.before_step(optimizer)
        optimizer.step()
        if step >= 3:
            assert_zeros(pruner)


class ReadOnly(torch.Tensor):
    """Moves as any tensor does, but not by others' hands."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.copy_:
            raise TypeError("cannot be copied")
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("at", [0, 3], ids=["pruned at once", "pruned later"])
def test_an_optimizer_of_torch_with_foreign_statistics_revives_nothing(at):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=False)
    for parameter in model.parameters():
        buffer = torch.ones_like(parameter, requires_grad=False).as_subclass(ReadOnly)
        optimizer.state[parameter]["momentum_buffer"] = buffer
    pruner = Pruner(sparsity=0.5, schedule=OneShotSchedule(end=at, unit="step"))
    pruner.attach(model, optimizer, steps=STEPS)
    for step in range(STEPS):
        train(model, optimizer, pruner, first=step)
        if step >= at:
            assert_zeros(pruner)


class Noisy(torch.optim.SGD):
    """Has the step of SGD, but adds noise to the gradients that this step collects."""

    def _init_group(self, group, params, grads, momentum_buffers):
        has_sparse = super()._init_group(group, params, grads, momentum_buffers)
        grads[:] = [grad + 1 for grad in grads]
        return has_sparse


class Mixin(torch.optim.Optimizer):
    """Comes after SGD, but before Optimizer."""

    def __getattribute__(self, name):
        return super().__getattribute__(name)


class Mixed(torch.optim.SGD, Mixin):
    """Inherits something that torch's own SGD does not have."""


class Named(torch.optim.SGD):
    """Only the constructor and a method that no step calls are of its own."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.1, momentum=0.9)

    def describe(self):
        return "SGD with momentum"


@pytest.mark.parametrize(
    ("make", "masked"),
    [
        (lambda p: Noisy(p, lr=0.1), 2),
        (lambda p: Mixed(p, lr=0.1), 2),
        (Named, 0),
    ],
    ids=["own method of the step", "inherited from elsewhere", "own constructor"],
)
def test_a_class_is_known_if_all_methods_are_those_of_torch(make, masked):
    model = make_model()
    optimizer = make(model.parameters())
    pruner = Pruner(sparsity=0.5, schedule=AT_ONCE)
    pruner.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, pruner, steps=3)
    assert_zeros(pruner)
    backward(model, optimizer, 3)
    pruner.before_step(optimizer)
    with Operations() as operations:
        optimizer.step()
    assert operations.all.count("bitwise_and_") == masked
    assert_zeros(pruner)


def test_a_method_that_is_replaced_in_an_object_is_not_trusted():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=False)
    collect = optimizer._init_group

    def add_noise(group, params, grads, momentum_buffers):
        has_sparse = collect(group, params, grads, momentum_buffers)
        grads[:] = [grad + 1 for grad in grads]
        return has_sparse

    pruner = Pruner(sparsity=0.5, schedule=AT_ONCE)
    pruner.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, pruner, steps=3)
    optimizer._init_group = add_noise
    train(model, optimizer, pruner, first=3)
    assert_zeros(pruner)


def test_a_scheduler_of_learning_rates_leaves_an_optimizer_known():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    pruner = Pruner(sparsity=0.5, schedule=AT_ONCE)
    pruner.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, pruner, steps=3)
    backward(model, optimizer, 3)
    pruner.before_step(optimizer)
    with Operations() as operations:
        optimizer.step()
    assert operations.all.count("bitwise_and_") == 0
